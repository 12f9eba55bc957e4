"""A batch is a function of (seed, epoch, step), for any number of workers and wherever the pictures lie."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import POLICIES, Augmentation, UserError
from pipeline.data import batches, loading, prepared
from pipeline.data.augment.colours import Colours
from pipeline.data.loading import Encoded, Resident, Source, Stored
from tests import conftest
from tests.conftest import pictures

recipe = partial(conftest.recipe, duration="1000 epochs")
DATA = pictures(50, 0)
LABELS = torch.from_numpy(DATA.labels)
RESIDENT = Resident(torch.from_numpy(DATA.pixels), LABELS)
COLOURS = Colours.of([0.5] * 3, [0.25] * 3)
AUGMENTATIONS = st.builds(
    Augmentation,
    crop_padding=st.integers(0, 3),
    random_resized_crop=st.sampled_from([None, 0.08, 0.5]),
    horizontal_flip=st.booleans(),
    policy=st.sampled_from(POLICIES),
    erase_probability=st.sampled_from([0.0, 0.5]),
    erase_mode=st.sampled_from(["const", "rand", "pixel"]),
    mixup_alpha=st.sampled_from([0.0, 0.8]),
    cutmix_alpha=st.sampled_from([0.0, 1.0]),
    mix_probability=st.sampled_from([0.5, 1.0]),
    repeats=st.sampled_from([1, 2, 4]),
)


def split_file(folder: Path, *, stored: bool) -> Path:
    """DATA as prepare stores it: pixels, or the files as their owner encoded them."""
    names, contents = [str(row) for row in range(50)], map(png, DATA.pixels)
    pixels = [prepared.pixel_table(DATA.pixels, DATA.labels, names)]
    prepared.write_split(folder / "train.arrow", pixels if stored else prepared.encoded_tables(contents, DATA.labels, names))
    return folder / "train.arrow"


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def encoded(threads: int) -> Encoded:
    files = [png(picture) for picture in DATA.pixels]
    return Encoded(files.__getitem__, LABELS, channels=3, threads=threads)


def epoch(
    source: Source = RESIDENT, *, world: int = 1, seed: int = 0, number: int = 0, side: int = 8, **changes
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The global batches of an epoch, put together from what each worker gets."""
    made = recipe(**{"batch_size": 8, **changes})
    shares = [
        batches.training(source, made, COLOURS, side=side, classes=3, seed=seed, epoch=number, rank=rank, world=world)
        for rank in range(world)
    ]
    return [(torch.cat([i for i, _ in step]), torch.cat([t for _, t in step])) for step in zip(*shares, strict=True)]


def same(first: list, second: list) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


@settings(max_examples=40)
@given(AUGMENTATIONS, st.integers(0, 2**32 - 1), st.integers(0, 1000), st.integers(1, 3))
def test_any_number_of_workers_trains_on_the_same_pixels_and_labels(augmentation, seed, number, passes):
    made = {"seed": seed, "number": number, "augmentation": augmentation, "passes_per_epoch": passes}
    alone = epoch(**made)
    assert same(alone, epoch(**made, world=2)) and same(alone, epoch(**made, world=4))


@settings(max_examples=30)
@given(AUGMENTATIONS, st.sampled_from([1, 2]), st.sampled_from([8, 12]), st.integers(0, 100))
def test_resident_and_streaming_pictures_are_the_same(augmentation, world, side, number):
    made = {"augmentation": augmentation, "number": number, "side": side}
    assert same(epoch(**made), epoch(Stored(DATA.pixels.__getitem__, LABELS), world=world, **made))


@settings(max_examples=10)
@given(AUGMENTATIONS, st.integers(0, 100))
def test_any_number_of_decoding_threads_gives_the_same_pictures(augmentation, number):
    made = {"augmentation": augmentation, "number": number, "side": 12}
    assert same(epoch(encoded(1), **made), epoch(encoded(3), world=2, **made))


def test_a_picture_is_the_same_stored_or_encoded():
    assert same(epoch(), epoch(encoded(2)))


@pytest.mark.parametrize("source", [Stored(DATA.pixels.__getitem__, LABELS), encoded(2)])
def test_reading_ahead_is_bounded(source):
    asked = []

    def takes():
        for start in range(0, 50, 5):
            asked.append(start)
            yield loading.Take(np.arange(start, start + 5))

    fetched = source.fetch(takes(), loading.Frame(8))
    assert torch.equal(next(fetched), RESIDENT.pixels[:5].permute(0, 3, 1, 2))
    assert len(asked) == loading.AHEAD + 1
    fetched.close()


def test_epochs_and_seeds_differ():
    assert not torch.equal(epoch()[0][0], epoch(number=1)[0][0])
    assert not torch.equal(epoch()[0][0], epoch(seed=1)[0][0])


@given(st.integers(1, 200), st.integers(0, 2**32 - 1), st.integers(0, 10))
def test_an_epoch_is_a_permutation(count, seed, number):
    assert sorted(batches.order(count, seed=seed, epoch=number)) == list(range(count))


@given(st.integers(8, 100), st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(0, 9))
def test_no_view_comes_twice_and_passes_meet_every_picture_as_often(count, passes, repeats, number):
    made = recipe(batch_size=8, passes_per_epoch=passes, augmentation=Augmentation(repeats=repeats))
    views = batches.plan(count, made, seed=0, epoch=number)
    assert views.shape == (passes * count // 8, 8)
    assert len(np.unique(views)) == views.size
    met = np.bincount(views.ravel() % count, minlength=count)
    if repeats == 1:
        assert met.max() <= passes and met.sum() == passes * count // 8 * 8


@given(st.sampled_from([1, 2, 4]), st.integers(0, 9))
def test_repeats_are_in_one_batch_and_differ(repeats, number):
    made = recipe(batch_size=8, augmentation=Augmentation(repeats=repeats))
    for views in batches.plan(50, made, seed=0, epoch=number):
        assert (np.unique(views % 50, return_counts=True)[1] == repeats).all()
    images, labels = epoch(number=number, augmentation=Augmentation(repeats=2, erase_probability=1.0, erase_mode="pixel"))[0]
    assert torch.equal(labels[:4], labels[4:]) and not torch.equal(images[:4], images[4:])


def test_passes_are_epochs_in_another_order_of_counting():
    one, three = recipe(batch_size=10), recipe(batch_size=10, passes_per_epoch=3)
    passes = [batches.plan(50, one, seed=4, epoch=epoch) for epoch in (3, 4, 5)]
    assert np.array_equal(batches.plan(50, three, seed=4, epoch=1) % 50, np.concatenate(passes))


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 5))
def test_an_evaluation_meets_every_picture_once(count, batch_size, world):
    source = Resident(torch.zeros(count, 4, 4, 1, dtype=torch.uint8), torch.arange(count))
    shards = [batches.evaluation(source, side=4, batch_size=batch_size, rank=rank, world=world) for rank in range(world)]
    met = [int(label) for shard in shards for _, part in shard for label in part]
    assert sorted(met) == list(range(count))


def test_an_evaluation_shows_the_middle_resized():
    ((whole, _),) = batches.evaluation(RESIDENT, side=16, batch_size=100)
    expected = Image.fromarray(DATA.pixels[7]).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.abs(whole[7].numpy().astype(int) - np.asarray(expected)).max() <= 2


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match="batch_size 64 exceeds the 50 training pictures"):
        batches.steps_per_epoch(50, recipe(batch_size=64))


@pytest.mark.parametrize(("residence", "kind"), [("auto", Resident), ("resident", Resident), ("streaming", Stored)])
def test_the_setting_decides_where_pictures_lie(residence: str, kind: Callable):
    opened = loading.open_source(DATA, torch.device("cpu"), residence=residence)
    assert isinstance(opened, kind)  # type: ignore[arg-type]
    assert same(epoch(opened), epoch())


@pytest.mark.parametrize("residence", ["auto", "resident", "streaming"])
@pytest.mark.parametrize("carried", [0, 2**30])
def test_a_split_that_is_carried_is_the_same_as_one_that_is_opened(residence, carried, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "CARRIED_BYTES", carried)
    pictures = loading.pictures(split_file(tmp_path, stored=True), channels=3)
    assert (pictures.pixels is None) == (carried == 0)
    assert same(epoch(loading.open_source(pictures, torch.device("cpu"), residence=residence)), epoch())


def test_encoded_pictures_are_decoded_and_cannot_be_resident(tmp_path):
    pictures = loading.pictures(split_file(tmp_path, stored=False), channels=3)
    assert same(epoch(loading.open_source(pictures, torch.device("cpu"))), epoch())
    with pytest.raises(UserError, match="cluster.data is resident, but data.image_size is null"):
        loading.open_source(pictures, torch.device("cpu"), residence="resident")


def test_a_file_that_vanished_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "CARRIED_BYTES", 0)
    pictures = loading.pictures(split_file(tmp_path, stored=True), channels=3)
    (tmp_path / "train.arrow").unlink()
    with pytest.raises(UserError, match="train.arrow is missing"):
        loading.open_source(pictures, torch.device("cpu"))


def test_what_does_not_fit_is_streamed(monkeypatch):
    monkeypatch.setattr(loading, "FREE_SHARE", 0.0)
    assert isinstance(loading.open_source(DATA, torch.device("cpu")), Stored)

"""Prepared data: every picture once, the same whatever the order of files, and nothing half-read."""

import io
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from pipeline.config import Data, UserError
from pipeline.data import decode, prepared, sources
from pipeline.data.prepare import prepare
from pipeline.data.prepared import Split


def data(path: Path, **changes) -> Data:
    plain = {"source": "image_folder", "path": str(path), "image_size": 8, "validation_fraction": 0.25}
    return Data(**{**plain, "test_fraction": 0.2, "split_seed": 0, "unreadable": "error", **changes})


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (13, 9)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
    return Image.fromarray(noise, "RGBA").convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Two classes of 20 pictures, with the litter that such folders gather."""
    for label, name in enumerate(["cat", "dog"]):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(20):
            picture(100 * label + index).save(tmp_path / "photos" / name / f"{index}.png")
    (tmp_path / "photos/cat/.DS_Store").write_bytes(b"litter")
    (tmp_path / "photos/dog/notes.txt").write_text("litter")
    (tmp_path / "photos/.hidden").mkdir()
    return tmp_path / "photos"


def made(settings: Data, out: Path) -> tuple[dict, dict[str, Split]]:
    card = prepare(sources.read(settings), settings, out)
    return card, {name: prepared.read_split(out / f"{name}.arrow") for name in prepared.SPLITS}


def test_every_picture_is_in_exactly_one_split_and_classes_keep_their_share(folder, tmp_path):
    card, splits = made(data(folder), tmp_path / "out")
    names = [name for split in splits.values() for name in split.names]
    assert sorted(names) == sorted(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(20))
    assert card["class_counts"] == {
        "train": {"cat": 12, "dog": 12},
        "validation": {"cat": 4, "dog": 4},
        "test": {"cat": 4, "dog": 4},
    }
    for split in splits.values():
        assert all(name.startswith(card["classes"][label]) for name, label in zip(split.names, split.labels, strict=True))


def test_names_and_order_of_files_do_not_matter(folder, tmp_path):
    first, _ = made(data(folder), tmp_path / "first")
    for name in ("cat", "dog"):
        files = sorted((folder / name).glob("*.png"))
        random.Random(0).shuffle(files)
        for index, file in enumerate(files):
            file.rename(folder / name / f"renamed-{index:03}.png")
    second, _ = made(data(folder), tmp_path / "second")
    assert first["fingerprint"] == second["fingerprint"]


def test_another_split_seed_is_another_split(folder, tmp_path):
    cards = [made(data(folder, split_seed=seed), tmp_path / str(seed))[0] for seed in (0, 1)]
    assert cards[0]["fingerprint"] != cards[1]["fingerprint"]


def test_the_split_does_not_depend_on_the_size_that_is_prepared(folder, tmp_path):
    tests = [made(data(folder, image_size=size), tmp_path / str(size))[1]["test"] for size in (8, 16)]
    assert tests[0].names == tests[1].names


def test_given_splits_are_kept(folder, tmp_path):
    root = tmp_path / "given"
    shutil.copytree(folder, root / "train")
    for name in ("cat", "dog"):
        (root / "test" / name).mkdir(parents=True)
        picture(999 + len(name) + ord(name[0])).save(root / "test" / name / "only.png")
    card, splits = made(data(root), tmp_path / "out")
    assert card["counts"] == {"train": 30, "validation": 10, "test": 2}
    assert splits["test"].names == sorted(splits["test"].names, key=splits["test"].names.index)


def test_the_same_picture_in_train_and_test_is_named(folder, tmp_path):
    root = tmp_path / "given"
    shutil.copytree(folder, root / "train")
    shutil.copytree(folder, root / "test")
    card, _ = made(data(root), tmp_path / "out")
    assert len(card["duplicates"]["across"]) == 40
    assert all(any(name.startswith("test: ") for name in names) for names in card["duplicates"]["across"])


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_kind_of_picture_becomes_rgb_of_the_size(mode):
    image = picture(1).convert("L") if mode == "I;16" else picture(1).convert(mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    content = io.BytesIO()
    image.save(content, "TIFF")
    pixels = decode.pixels(content.getvalue(), channels=3, image_size=8)
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    assert 20 < pixels.mean() < 235


def test_a_picture_is_turned_upright():
    flat = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    flat.paste((255, 255, 255), (0, 0, 8, 4))  # white above black
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    content = io.BytesIO()
    flat.save(content, "PNG", exif=exif)
    assert decode.pixels(content.getvalue(), channels=3, image_size=8)[0].max() == 0


GOOD = io.BytesIO()
picture(5, size=(64, 64)).save(GOOD, "PNG")


@pytest.mark.parametrize(
    "content",
    [b"", b"not a picture", GOOD.getvalue()[:200], GOOD.getvalue()[:40], b"\x89PNG\r\n\x1a\n" + os.urandom(50)],
    ids=["empty", "text", "truncated", "cut in its header", "noise"],
)
def test_what_cannot_be_decoded_is_named_or_skipped(folder, tmp_path, content):
    (folder / "cat/broken.png").write_bytes(content)
    with pytest.raises(UserError, match=r"^1 unreadable: cat/broken.png \(.+\); mend or remove, or set data.unreadable: skip$"):
        made(data(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    card, _ = made(data(folder, unreadable="skip"), tmp_path / "out")
    assert [entry["name"] for entry in card["unreadable"]] == ["cat/broken.png"]


def test_a_decompression_bomb_is_unreadable(monkeypatch):
    monkeypatch.setattr(decode, "LARGEST_PIXELS", 100)
    with pytest.raises(decode.Unreadable):
        decode.decode(GOOD.getvalue())


def test_a_class_too_small_to_split_is_refused(folder, tmp_path):
    (folder / "emu").mkdir()
    picture(77).save(folder / "emu/only.png")
    with pytest.raises(UserError, match="class 'emu' has 1 pictures, too few"):
        made(data(folder), tmp_path / "out")


def test_digits_are_stratified_and_whole(tmp_path):
    card, splits = made(data(tmp_path, source="digits"), tmp_path / "out")
    assert sum(card["counts"].values()) == 1797 and not any(card["duplicates"].values())
    shares = [np.bincount(split.labels, minlength=10) / len(split) for split in splits.values()]
    assert np.abs(np.diff(shares, axis=0)).max() < 0.01
    assert splits["train"].pixels.max() == 255


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3]))))
def test_what_is_written_is_read(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("split") / "x.arrow"
    names = [f"n{i}" for i in range(len(pixels))]
    prepared.write_split(path, [prepared.pixel_table(pixels, np.arange(len(pixels)), names)])
    back = prepared.read_split(path)
    assert np.array_equal(back.pixels, pixels) and back.labels.tolist() == list(range(len(pixels))) and back.names == names
    assert back.stored_size == pixels.shape[1] and not back.pixels.flags.writeable and not back.pixels.flags.owndata


def test_mean_and_std_are_those_of_the_training_pixels(folder, tmp_path):
    card, splits = made(data(folder), tmp_path / "out")
    scaled = splits["train"].pixels / 255
    assert np.allclose(card["mean"], scaled.mean((0, 1, 2))) and np.allclose(card["std"], scaled.std((0, 1, 2)))


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"ARROW1" + b[6:-6] + b"xxxxxx"])
def test_a_damaged_split_is_one_line(folder, tmp_path, damage):
    made(data(folder), tmp_path / "out")
    path = tmp_path / "out/test.arrow"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="is damaged .* `dvc repro prepare` makes it anew"):
        prepared.read_split(path)
    path.unlink()
    with pytest.raises(UserError, match="is missing; `dvc repro prepare` makes it"):
        prepared.read_split(path)

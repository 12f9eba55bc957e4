"""A batch is a function of (seed, epoch, step), for any number of workers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Augmentation, UserError
from pipeline.data import augment, batches
from tests.conftest import pictures

ALL = Augmentation(crop_padding=2, horizontal_flip=True, erase_probability=0.5)
PIXELS, LABELS = (torch.from_numpy(part) for part in (pictures(50, 0).pixels, pictures(50, 0).labels))


def epoch(*, world: int = 1, seed: int = 0, number: int = 0) -> list[torch.Tensor]:
    """The global batches of an epoch, put together from what each worker gets."""
    shares = [
        batches.training(PIXELS, LABELS, ALL, batch_size=8, seed=seed, epoch=number, rank=rank, world=world)
        for rank in range(world)
    ]
    return [torch.cat([images for images, _ in step]) for step in zip(*shares, strict=True)]


@pytest.mark.parametrize("world", [2, 4, 8])
@given(seed=st.integers(0, 2**32 - 1), number=st.integers(0, 1000))
def test_any_number_of_workers_trains_on_the_same_pixels(world, seed, number):
    alone, shared = epoch(seed=seed, number=number), epoch(world=world, seed=seed, number=number)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_epochs_and_seeds_differ():
    assert not torch.equal(epoch()[0], epoch(number=1)[0])
    assert not torch.equal(epoch()[0], epoch(seed=1)[0])


@given(st.integers(1, 200), st.integers(0, 2**32 - 1), st.integers(0, 10))
def test_an_epoch_is_a_permutation(count, seed, number):
    assert sorted(batches.order(count, seed=seed, epoch=number)) == list(range(count))


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 5))
def test_an_evaluation_meets_every_picture_once(count, batch_size, world):
    labels = torch.arange(count)
    shards = [
        batches.evaluation(labels[:, None], labels, batch_size=batch_size, rank=rank, world=world) for rank in range(world)
    ]
    met = [int(label) for shard in shards for _, part in shard for label in part]
    assert sorted(met) == list(range(count))


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match="batch_size 64 exceeds the 50 training pictures"):
        batches.steps_per_epoch(50, 64)


def test_random_numbers_are_uniform_and_differ_by_operation_picture_and_draw():
    numbers = augment.uniform(np.arange(20000), 4, seed=3, epoch=5, operation="crop")
    assert numbers.shape == (20000, 4) and numbers.min() >= 0 and numbers.max() < 1
    assert np.abs(np.histogram(numbers, 20, (0, 1))[0] / numbers.size - 0.05).max() < 0.003
    assert np.abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.03
    other = augment.uniform(np.arange(20000), 4, seed=3, epoch=5, operation="flip")
    assert abs(np.corrcoef(numbers[:, 0], other[:, 0])[0, 1]) < 0.03


@given(st.integers(0, 3), st.integers(0, 2**31))
def test_a_crop_is_a_window_of_the_padded_picture(padding, seed):
    images = PIXELS[:6]
    chances = torch.from_numpy(augment.uniform(np.arange(6), 2, seed=seed, epoch=0, operation="crop"))
    padded = np.pad(images.numpy(), ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    for before, after in zip(padded, augment.crop(images, chances, padding).numpy(), strict=True):
        windows = [before[y : y + 8, x : x + 8] for y in range(2 * padding + 1) for x in range(2 * padding + 1)]
        assert any(np.array_equal(window, after) for window in windows)


def test_a_flip_mirrors_or_leaves():
    flipped = augment.flip(PIXELS[:2], torch.tensor([[0.1], [0.9]]), True)
    assert torch.equal(flipped[0], PIXELS[0].flip(1)) and torch.equal(flipped[1], PIXELS[1])


def test_erasing_takes_the_share_of_pictures_and_of_area_that_it_should():
    images = torch.randint(0, 256, (2000, 16, 16, 1), dtype=torch.uint8)
    chances = torch.from_numpy(augment.uniform(np.arange(2000), 5, seed=0, epoch=0, operation="erase"))
    changed = (augment.erase(images, chances, 0.25) != images).float().mean((1, 2, 3))
    assert abs((changed > 0).float().mean() - 0.25) < 0.03
    assert 0.15 < changed[changed > 0].mean() < 0.25
    assert torch.equal(augment.erase(images, chances, 0.0), images)

"""Which pictures, in which order, for which worker, at which step.

A batch is a function of (seed, epoch, step). The global batch is fixed; worker `rank` of `world` takes its share of
consecutive rows, so that any number of workers trains on the same pictures with the same pixels.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import Augmentation, Training, UserError
from pipeline.data.augment import augment, mixing
from pipeline.data.augment.chances import Chances
from pipeline.data.augment.colours import Colours
from pipeline.data.augment.geometry import RECTANGLE_DRAWS, Frame
from pipeline.data.loading import Source, Take
from pipeline.durations import Timetable

BYTES_AT_ONCE = 2**21  # of small batches that are augmented together


def image_shape(card: dict[str, Any], recipe: Training) -> list[int]:
    """Height, width and channels of what the networks of a recipe see. Raises UserError where nothing says it."""
    side = recipe.image_size or (card["image_shape"] or [None])[0]
    if side is None:
        raise UserError("the prepared pictures are of any size: set image_size, in pixels, under `training` in params.yaml")
    return [side, side, card["channels"]]


def steps_per_epoch(pictures: int, recipe: Training) -> int:
    """Full batches in an epoch; the pictures that are left over differ from epoch to epoch.

    Raises UserError where there is not even one full batch.
    """
    if recipe.batch_size > pictures:
        raise UserError(
            f"batch_size {recipe.batch_size} exceeds the {pictures} training pictures; at most {pictures} can be in a batch"
        )
    return recipe.passes_per_epoch * pictures // recipe.batch_size


def timetable(pictures: int, recipe: Training) -> Timetable:
    """What the durations of a recipe are in steps. Raises UserError where there is not even one full batch."""
    steps = steps_per_epoch(pictures, recipe)
    return Timetable.of(recipe.duration, steps_per_epoch=steps, batch_size=recipe.batch_size)


def order(pictures: int, *, seed: int, epoch: int) -> np.ndarray:
    """The permutation of all pictures that an epoch of one pass follows."""
    return np.random.default_rng([seed, epoch]).permutation(pictures)


def plan(pictures: int, recipe: Training, *, seed: int, epoch: int) -> np.ndarray:
    """(steps, batch_size) the views of an epoch; view v shows picture v % pictures (see `augment.chances`).

    An epoch is `passes_per_epoch` permutations after each other. With repeats, a batch holds so many different pictures
    fewer, each several times, and an epoch shows as many images as without. The last epoch ends with the training.
    """
    passes, repeats = recipe.passes_per_epoch, recipe.augmentation.repeats
    steps, different = timetable(pictures, recipe).steps_in(epoch), recipe.batch_size // repeats
    firsts = [order(pictures, seed=seed, epoch=epoch * passes + turn) + turn * repeats * pictures for turn in range(passes)]
    views = np.concatenate(firsts)[: steps * different].reshape(steps, different)
    return np.concatenate([views + again * pictures for again in range(repeats)], axis=1)


def share(rows: np.ndarray, *, rank: int, world: int) -> np.ndarray:
    """The consecutive rows of a global batch that belong to one worker. `world` divides the batch."""
    size = len(rows) // world
    return rows[rank * size : (rank + 1) * size]


def shares(pictures: int, recipe: Training, *, seed: int, epoch: int, rank: int, world: int) -> list[np.ndarray]:
    """The views (B,) of each batch of an epoch that belong to one worker."""
    return [share(views, rank=rank, world=world) for views in plan(pictures, recipe, seed=seed, epoch=epoch)]


def training(
    source: Source,
    recipe: Training,
    colours: Colours,
    *,
    side: int,
    classes: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One worker's batches of an epoch: images (B, side, side, C) uint8 with B = batch_size / world, and labels.

    Labels are classes (B,), or where the recipe mixes pictures, probabilities (B, classes). The work is done on the
    source's device. In memory, each channel of a picture is a plane.
    """
    pictures, settings = len(source.labels), recipe.augmentation
    mine = shares(pictures, recipe, seed=seed, epoch=epoch, rank=rank, world=world)
    images = augmented(source, mine, settings, colours, side=side, seed=seed, epoch=epoch)
    for step, (views, shown) in enumerate(zip(mine, images, strict=True)):
        labels = source.labels[torch.from_numpy(views % pictures).to(source.labels.device)]
        if settings.mixes:
            how = mixing.draw(settings, height=side, width=side, seed=seed, epoch=epoch, step=step)
            shown, labels = mixing.mix(shown, labels, how, classes)
        yield shown.permute(0, 2, 3, 1), labels


def augmented(
    source: Source, batches: Sequence[np.ndarray], settings: Augmentation, colours: Colours, *, side: int, seed: int, epoch: int
) -> Iterator[Tensor]:
    """The pictures (B, C, side, side) uint8 of each batch of views (B,), augmented but not mixed.

    Several small batches are worked on at once, which is faster and does not change a picture.
    """
    at_once = max(1, BYTES_AT_ONCE // (3 * side * side * max(1, len(batches[0]))))
    groups = [batches[first : first + at_once] for first in range(0, len(batches), at_once)]
    chances = [Chances(np.concatenate(group), seed, epoch) for group in groups]
    frame, pictures = Frame(side, settings.random_resized_crop), len(source.labels)
    takes = (Take(own.views % pictures, own("resize", RECTANGLE_DRAWS) if frame.least_area else None) for own in chances)
    for own, group, images in zip(chances, groups, source.fetch(takes, frame), strict=True):
        yield from augment(images, settings, own, colours).split([len(views) for views in group])


def evaluation(source: Source, *, side: int, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """One worker's part of a split, every picture once over all workers: nothing is padded, nothing dropped."""
    pictures = len(source.labels)
    parts = [
        np.arange(start, min(start + batch_size, pictures)) for start in range(rank * batch_size, pictures, world * batch_size)
    ]
    for rows, images in zip(parts, source.fetch(map(Take, parts), Frame(side)), strict=True):
        yield images.permute(0, 2, 3, 1), source.labels[rows[0] : rows[-1] + 1]

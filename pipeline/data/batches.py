"""Which pictures, in which order, for which worker, at which step.

A batch is a function of (seed, epoch, step). The global batch is fixed; worker `rank` of `world` takes its share of
consecutive rows, so that any number of workers trains on the same pictures with the same pixels.
"""

from collections.abc import Iterator

import numpy as np
import torch

from pipeline.config import Augmentation, UserError
from pipeline.data.augment import augment


def steps_per_epoch(pictures: int, batch_size: int) -> int:
    """Full batches in one pass; the pictures that are left over differ from epoch to epoch.

    Raises UserError where there is not even one full batch.
    """
    if batch_size > pictures:
        raise UserError(
            f"batch_size {batch_size} exceeds the {pictures} training pictures; at most {pictures} can be in a batch"
        )
    return pictures // batch_size


def order(pictures: int, *, seed: int, epoch: int) -> np.ndarray:
    """The permutation of all pictures that an epoch follows."""
    return np.random.default_rng([seed, epoch]).permutation(pictures)


def share(rows: np.ndarray, *, rank: int, world: int) -> np.ndarray:
    """The consecutive rows of a global batch that belong to one worker. `world` divides the batch."""
    size = len(rows) // world
    return rows[rank * size : (rank + 1) * size]


def training(
    pixels: torch.Tensor,
    labels: torch.Tensor,
    augmentation: Augmentation,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One worker's batches of an epoch: images (B, H, W, C) uint8, labels (B,), B = batch_size / world.

    pixels (N, H, W, C) uint8 and labels (N,) may lie on any device; the work is done there.
    """
    epoch_order = order(len(labels), seed=seed, epoch=epoch)
    for step in range(steps_per_epoch(len(labels), batch_size)):
        pictures = share(epoch_order[step * batch_size : (step + 1) * batch_size], rank=rank, world=world)
        rows = torch.from_numpy(pictures).to(pixels.device)
        yield augment(pixels[rows], pictures, augmentation, seed=seed, epoch=epoch), labels[rows]


def evaluation(
    pixels: torch.Tensor, labels: torch.Tensor, *, batch_size: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One worker's part of a split, every picture once over all workers: nothing is padded, nothing dropped."""
    for start in range(rank * batch_size, len(labels), world * batch_size):
        yield pixels[start : start + batch_size], labels[start : start + batch_size]

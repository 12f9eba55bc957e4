"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): pictures and labels of two, in timm's batch mode.

What is done to a global batch, how much and where, is a function of (seed, epoch, step). Row 2i is mixed with row
2i + 1: the order is random already, and so no worker needs a picture of another's share.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import Augmentation


@dataclass(frozen=True)
class Mix:
    """What a batch keeps of its own pictures, and the box that comes from the partners; without one, all is blended."""

    kept: float
    box: tuple[int, int, int, int] | None  # top, bottom, left, right


def draw(augmentation: Augmentation, *, height: int, width: int, seed: int, epoch: int, step: int) -> Mix:
    """How the batch of this step, with pictures of this size in pixels, is mixed."""
    generator = np.random.default_rng([seed, epoch, step, int.from_bytes(b"mix")])
    mixed, cut = generator.random(2)
    if mixed >= augmentation.mix_probability:
        return Mix(1.0, None)
    if augmentation.cutmix_alpha and (cut < augmentation.switch_probability or not augmentation.mixup_alpha):
        return _cut(generator.beta(augmentation.cutmix_alpha, augmentation.cutmix_alpha), generator, height, width)
    return Mix(generator.beta(augmentation.mixup_alpha, augmentation.mixup_alpha), None)


def _cut(kept: float, generator: np.random.Generator, height: int, width: int) -> Mix:
    """A box of 1 - kept of the area around a random middle; what falls outside of the picture is kept after all."""
    tall, wide = int(height * np.sqrt(1 - kept)), int(width * np.sqrt(1 - kept))
    y, x = int(generator.integers(height)), int(generator.integers(width))
    top, bottom = max(0, y - tall // 2), min(height, y + (tall + 1) // 2)
    left, right = max(0, x - wide // 2), min(width, x + (wide + 1) // 2)
    return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def mix(images: Tensor, labels: Tensor, how: Mix, classes: int) -> tuple[Tensor, Tensor]:
    """The mixed pictures (B, C, H, W) uint8 and their labels as probabilities (B, classes); B is even."""
    targets = F.one_hot(labels, classes).float()
    if how.kept == 1:
        return images, targets
    return _mixed_images(images, how), how.kept * targets + (1 - how.kept) * _partners(targets)


def _mixed_images(images: Tensor, how: Mix) -> Tensor:
    partners = _partners(images)
    if how.box is None:
        return images.float().mul_(how.kept).add_(partners.float().mul_(1 - how.kept)).round_().to(images.dtype)
    top, bottom, left, right = how.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
    return mixed


def _partners(rows: Tensor) -> Tensor:
    """Each row's neighbour: 1, 0, 3, 2, ..."""
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)

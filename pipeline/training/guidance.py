"""Locality guidance: the student's maps are drawn to those of a CNN teacher, early on or throughout.

Li et al. 2022; the decay to zero is Rostand et al.'s early guidance. The frame comes off once the tree holds its shape.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Guidance, UserError


class Teacher(nn.Module):
    """A trained network that never changes: always in eval mode, no gradients.

    Pictures (B, C, H, W) are resized to `image_size` (height, width), where the teacher was trained; the maps of its
    default layers come back.
    """

    def __init__(self, network: Any, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.network: Any = network.eval().requires_grad_(False)
        self.image_size = image_size

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode: the student's batches must not move the BatchNorm statistics."""
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        if tuple(images.shape[2:]) != self.image_size:
            images = F.interpolate(images, self.image_size, mode="bilinear", align_corners=False)
        return self.network.forward_intermediates(images, indices=self.network.default_layers)[1]


class GuidedStudent(nn.Module):
    """A student and the 1x1 convolutions that bring its maps to the teacher's channels.

    forward gives the logits and the projected maps in one pass, so that data-parallel wrappers see both.
    """

    def __init__(self, student: Any, projections: nn.Module, layers: Sequence[int]) -> None:
        super().__init__()
        self.student: Any = student
        self.projections, self.layers = projections, list(layers)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        features, maps = self.student.forward_intermediates(images, indices=self.layers)
        projected = [projection(each) for projection, each in zip(self.projections.children(), maps, strict=True)]
        return self.student.forward_head(features), projected


def layers_of(student: Any, guidance: Guidance) -> list[int]:
    """The student's layers that are guided."""
    return student.default_layers if guidance.student_layers is None else guidance.student_layers


def projections(student: Any, teacher: Teacher, guidance: Guidance, *, image_shape: Sequence[int], seed: int) -> nn.ModuleList:
    """The 1x1 convolutions, from the student's channels to the teacher's, drawn from a random state of their own.

    image_shape: (H, W, C) of the student's pictures. Raises UserError where the layers do not pair up.
    """
    layers = layers_of(student, guidance)
    height, width, channels = image_shape
    picture = torch.zeros(1, channels, height, width)
    wanted = teacher(picture)
    if len(layers) != len(wanted):
        raise UserError(f"guidance student_layers {layers}: the teacher has {len(wanted)} layers to pair them with")
    given = _maps_of(student, picture, layers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.ModuleList(nn.Conv2d(s.shape[1], t.shape[1], 1) for s, t in zip(given, wanted, strict=True))


def _maps_of(student: Any, picture: Tensor, layers: Sequence[int]) -> list[Tensor]:
    training = student.training
    try:
        with torch.no_grad():
            return student.eval().forward_intermediates(picture, indices=layers)[1]
    except (IndexError, KeyError):
        raise UserError(f"guidance student_layers {list(layers)}: the student has no layer of that index") from None
    finally:
        student.train(training)


def guidance_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Sum over pairs of the mean squared difference, both maps resized (bilinear) to the larger height and width."""
    losses = []
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        size = (max(student.shape[2], teacher.shape[2]), max(student.shape[3], teacher.shape[3]))
        losses.append(F.mse_loss(_resized(student, size), _resized(teacher, size)))
    return torch.stack(losses).sum()


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    maps = maps.float()
    return maps if tuple(maps.shape[2:]) == size else F.interpolate(maps, size, mode="bilinear", align_corners=False)


def guided_epochs(guidance: Guidance, epochs: int) -> int:
    """How many epochs run with guidance; it ends with a whole epoch, after which the teacher is let go."""
    if guidance.beta == 0:
        return 0
    return epochs if guidance.end_fraction is None else math.ceil(guidance.end_fraction * epochs)


def beta_at(step: int, guidance: Guidance, *, end_step: int) -> float:
    """The weight of the guidance loss; a decaying one reaches zero at `end_step` and stays there."""
    if step >= end_step:
        return 0.0
    return guidance.beta * SCHEDULES[guidance.schedule](step / end_step)


SCHEDULES = {  # the fraction of beta that is left, at a fraction of the guided steps
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: (1.0 + math.cos(math.pi * done)) / 2,
}

"""Locality guidance: the student's maps are drawn to those of a CNN teacher, early on or throughout.

Li et al. 2022; the decay to zero is Rostand et al.'s early guidance. The frame comes off once the tree holds its shape.
Beside it or in its place, the student can learn from the teacher's answers: the distillation of Touvron et al. 2021.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Guidance, UserError
from pipeline.durations import Timetable


class Teacher(nn.Module):
    """A trained network that never changes: always in eval mode, no gradients.

    Pictures (B, C, H, W) are resized to `image_size` (height, width), where the teacher was trained; its logits (B, K)
    and the maps of its `layers` come back, by default those of the papers.
    """

    def __init__(self, network: Any, image_size: tuple[int, int], layers: Sequence[int] | None = None) -> None:
        super().__init__()
        self.network: Any = network.eval().requires_grad_(False)
        self.image_size = image_size
        self.layers = list(network.default_layers if layers is None else layers)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode: the student's batches must not move the BatchNorm statistics."""
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        if tuple(images.shape[2:]) != self.image_size:
            images = F.interpolate(images, self.image_size, mode="bilinear", align_corners=False)
        features, maps = self.network.forward_intermediates(images, indices=self.layers)
        return self.network.forward_head(features), maps


class GuidedStudent(nn.Module):
    """A student and the 1x1 convolutions that bring its maps to the teacher's channels.

    forward gives the logits that learn from the labels, those that learn from the teacher, and the projected maps, in one
    pass, so that data-parallel wrappers see all. The logits are the same twice, unless there is a distillation token and
    `distilled` is true.
    """

    def __init__(self, student: Any, projections: nn.Module, layers: Sequence[int], *, distilled: bool = False) -> None:
        super().__init__()
        self.student: Any = student
        self.projections, self.layers = projections, list(layers)
        self.two_heads = distilled and getattr(student, "head_dist", None) is not None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        features, maps = self.student.forward_intermediates(images, indices=self.layers)
        projected = [projection(each) for projection, each in zip(self.projections.children(), maps, strict=True)]
        return *self._answers(features), projected

    def _answers(self, features: Tensor) -> tuple[Tensor, Tensor]:
        if self.two_heads:
            return self.student.head(features[:, 0]), self.student.head_dist(features[:, 1])
        logits = self.student.forward_head(features)
        return logits, logits


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
    wanted = _maps_of(teacher.network, torch.zeros(1, channels, *teacher.image_size), teacher.layers, whose="teacher")
    if len(layers) != len(wanted):
        raise UserError(f"guidance student_layers {layers}: the teacher has {len(wanted)} layers to pair them with")
    given = _maps_of(student, picture, layers, whose="student")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pairs, kernel = zip(given, wanted, strict=True), guidance.projection_kernel
        return nn.ModuleList(nn.Conv2d(own.shape[1], theirs.shape[1], kernel, padding="same") for own, theirs in pairs)


def _maps_of(network: Any, picture: Tensor, layers: Sequence[int], *, whose: str) -> list[Tensor]:
    training = network.training
    try:
        with torch.no_grad():
            return network.eval().forward_intermediates(picture, indices=layers)[1]
    except (IndexError, KeyError):
        raise UserError(f"guidance {whose}_layers {list(layers)}: the {whose} has no layer of that index") from None
    finally:
        network.train(training)


def guidance_loss(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], *, loss: str = "mse", normalise: bool = False
) -> Tensor:
    """Sum over pairs of the difference of two maps, both resized (bilinear) to the larger height and width.

    loss "mse" is the mean squared difference (Li et al. 2022), "cosine" one less the mean cosine between the channels at
    a position, "attention" the mean squared difference of the maps' energy over positions, at unit norm (Zagoruyko and
    Komodakis 2017, equation 2). normalise: each channel of a picture to zero mean and unit variance before.
    """
    losses = []
    for pair in zip(student_maps, teacher_maps, strict=True):
        size = (max(own.shape[2] for own in pair), max(own.shape[3] for own in pair))
        resized = [_resized(own, size) for own in pair]
        losses.append(LOSSES[loss](*([F.instance_norm(own) for own in resized] if normalise else resized)))
    return torch.stack(losses).sum()


def distillation_loss(student: Tensor, teacher: Tensor, settings: Guidance) -> Tensor:
    """How far the student's logits (B, K) are from what the teacher's say, in nats a picture (Touvron et al. 2021, section 4).

    "hard": cross entropy with the class that the teacher finds likeliest. "soft": the Kullback-Leibler divergence from its
    probabilities, both at the temperature, times the square of that (Hinton et al. 2015; DeiT's code also divides by K).
    """
    student, teacher = student.float(), teacher.float()
    if settings.distillation == "hard":
        return F.cross_entropy(student, teacher.argmax(1))
    own, theirs = ((logits / settings.temperature).log_softmax(1) for logits in (student, teacher))
    return F.kl_div(own, theirs, log_target=True, reduction="batchmean") * settings.temperature**2


def _cosine(student: Tensor, teacher: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(student, teacher, dim=1).mean()


def _attention(student: Tensor, teacher: Tensor) -> Tensor:
    own, theirs = (F.normalize(maps.square().mean(1).flatten(1), dim=1) for maps in (student, teacher))
    return (own - theirs).square().mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "cosine": _cosine, "attention": _attention}


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    maps = maps.float()
    return maps if tuple(maps.shape[2:]) == size else F.interpolate(maps, size, mode="bilinear", align_corners=False)


def end_step(guidance: Guidance, timetable: Timetable) -> int:
    """The first step at which beta is 0 for good, where nothing ends it before."""
    if guidance.beta == 0:
        return 0
    return timetable.total_steps if guidance.end is None else timetable.steps(guidance.end)


def goes_on(guidance: Guidance, history: Sequence[dict[str, Any]], timetable: Timetable) -> bool:
    """Whether the next epoch begins with guidance, by what the epochs before were like. Once it has ended, it stays so."""
    if timetable.steps_after(len(history)) >= end_step(guidance, timetable):
        return False
    if guidance.schedule != "adaptive" or not history:
        return True
    window = max(2, round(timetable.steps(guidance.window) / timetable.steps_per_epoch))
    losses = [row["guidance_loss"] for row in history]
    return bool(history[-1]["beta"]) and slope(losses, window=window) * timetable.epochs <= guidance.stop_slope


def slope(losses: Sequence[float], *, window: int) -> float:
    """The derivative of the losses by the epoch at their end, after two moving averages; -infinity while there are few.

    Rostand et al. end guidance where it rises above -0.02, at 300 epochs and a window of 50: -6 over a whole training.
    """
    smoothed = _moving_average(_moving_average(np.asarray(losses), window), window)
    return float(smoothed[-1] - smoothed[-2]) if len(smoothed) > 1 else -math.inf


def _moving_average(values: np.ndarray, window: int) -> np.ndarray:
    return np.convolve(values, np.full(window, 1 / window), "valid") if len(values) >= window else values[:0]


def beta_at(step: int, guidance: Guidance, *, end_step: int) -> float:
    """The weight of the guidance loss; a decaying one reaches zero at `end_step` and stays there."""
    if step >= end_step:
        return 0.0
    return guidance.beta * SCHEDULES[guidance.schedule](step / end_step)


SCHEDULES: dict[str, Callable[[float], float]] = {  # the fraction of beta that is left, at a fraction of the guided steps
    "constant": lambda done: 1.0,
    "step": lambda done: 1.0,
    "adaptive": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: (1.0 + math.cos(math.pi * done)) / 2,
}

"""Parameter groups, optimizers, and the learning rate as a function of the step."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from pipeline.config import Training
from pipeline.durations import Timetable


def build(modules: Iterable[nn.Module], training: Training) -> Optimizer:
    """The optimizer of a recipe over all parameters of the modules."""
    groups = parameter_groups(modules, weight_decay=training.weight_decay, decay_all=training.decay_all)
    return OPTIMIZERS[training.optimizer](groups, training.learning_rate)


def parameter_groups(modules: Iterable[nn.Module], *, weight_decay: float, decay_all: bool = False) -> list[dict[str, Any]]:
    """Weight decay on matrices and kernels; none on biases, norms, scales and what a network itself spares, unless on all."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        spared: set[str] = getattr(module, "no_weight_decay", set)()  # class tokens, positions
        for name, parameter in module.named_parameters():
            (matrices if parameter.ndim > 1 and name not in spared else others).append(parameter)
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": weight_decay if decay_all else 0.0},
    ]


def learning_rate_at(step: int, training: Training, timetable: Timetable) -> float:
    """Linear warm-up to the peak, then from there by the schedule to the floor after the last step."""
    warmup, total = timetable.steps(training.warmup), timetable.total_steps
    peak = training.learning_rate * training.batch_size / (training.reference_batch_size or training.batch_size)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    left = SCHEDULES[training.schedule]((step - warmup) / (total - warmup))
    return peak * (training.floor_fraction + (1 - training.floor_fraction) * left)


SCHEDULES: dict[str, Callable[[float], float]] = {  # what is left of the peak, when a part of the way is done
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
    "step": lambda done: 0.1 ** ((done >= 0.5) + (done >= 0.75)),  # He et al. 2016, section 4.2
}


def _adamw(groups: list[dict[str, Any]], rate: float) -> Optimizer:
    return AdamW(groups, lr=rate, betas=(0.9, 0.999))


def _sgd(groups: list[dict[str, Any]], rate: float) -> Optimizer:
    return SGD(groups, lr=rate, momentum=0.9, nesterov=True)


def _lion(groups: list[dict[str, Any]], rate: float) -> Optimizer:
    """Chen et al. 2023; a rate a third to a tenth of AdamW's is usual."""
    from timm.optim import Lion

    return Lion(groups, lr=rate, betas=(0.9, 0.99))


def _muon(groups: list[dict[str, Any]], rate: float) -> Optimizer:
    """Jordan et al. 2024 for the matrices, scaled to AdamW's rates (Liu et al. 2025); AdamW for all else."""
    from timm.optim import Muon

    matrices, others = groups
    return Muon([matrices, {**others, "use_fallback": True}], lr=rate, nesterov=True, adjust_lr_fn="match_rms_adamw")


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], float], Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "lion": _lion,
    "muon": _muon,
}

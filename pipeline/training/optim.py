"""Parameter groups, optimizers, and the learning rate as a function of the step."""

import math
from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from pipeline.config import Training

NO_DECAY = ("cls_token", "pos_embed")


def build(modules: Iterable[nn.Module], training: Training) -> Optimizer:
    """The optimizer of a recipe over all parameters of the modules."""
    groups = parameter_groups(modules, weight_decay=training.weight_decay)
    return OPTIMIZERS[training.optimizer](groups, training.learning_rate)


def parameter_groups(modules: Iterable[nn.Module], *, weight_decay: float) -> list[dict]:
    """Weight decay on matrices and kernels; none on biases, norms, scales, class tokens and positions."""
    named = [entry for module in modules for entry in module.named_parameters()]
    decays = [parameter.ndim > 1 and not name.endswith(NO_DECAY) for name, parameter in named]
    parameters = [parameter for _, parameter in named]
    return [
        {"params": [p for p, decay in zip(parameters, decays, strict=True) if decay], "weight_decay": weight_decay},
        {"params": [p for p, decay in zip(parameters, decays, strict=True) if not decay], "weight_decay": 0.0},
    ]


def learning_rate_at(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up to `peak` at step `warmup_steps`, then half a cosine to zero at `total_steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    return peak * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps))) / 2


OPTIMIZERS: dict[str, Callable[[list[dict], float], Optimizer]] = {
    "adamw": lambda groups, rate: AdamW(groups, lr=rate, betas=(0.9, 0.999)),
    "sgd": lambda groups, rate: SGD(groups, lr=rate, momentum=0.9, nesterov=True),
}

"""A step, an epoch, an evaluation: tensors in, sums out. Knows no Ray and no files."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from pipeline.config import Guidance, UserError
from pipeline.metrics import CALIBRATION_BINS, Counts
from pipeline.training.guidance import Teacher, distillation_loss, guidance_loss

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Pixels:
    """How stored pixels become input: (B, H, W, C) uint8 to (B, C, H, W) float, normalised per channel."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, mean: list[float], std: list[float], device: torch.device) -> "Pixels":
        return cls(torch.tensor(mean, device=device) * 255, torch.tensor(std, device=device) * 255)

    def __call__(self, images: Tensor) -> Tensor:
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Objective:
    """What a step minimises: cross entropy, and while there is a teacher, beta times the guidance loss and distillation.

    model: the student, or with guidance a GuidedStudent; either may be wrapped for data-parallel training.
    """

    model: nn.Module
    teacher: Teacher | None  # that sees what the student sees; None where its maps were stored before
    pixels: Pixels
    label_smoothing: float
    precision: torch.dtype
    guidance: Guidance | None = None  # how a teacher is learned from; None: the student learns alone

    def __call__(self, images: Tensor, labels: Tensor, beta: float, *stored: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the sums (5,): cross entropy, guidance loss, distillation loss, correct pictures, pictures.

        labels: classes (B,), or probabilities (B, K) of mixed pictures, of which the likeliest class counts as correct.
        stored: the teacher's maps (B, C, h, w) of these pictures, where there is guidance but no teacher.
        """
        inputs = self.pixels(images)
        with autocast(inputs.device, self.precision):
            logits, taught, maps = self.model(inputs) if self.guidance else _alone(self.model(inputs))
            entropy = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
            truth, theirs = self.teacher(inputs) if self.teacher else (taught, stored)
            guidance, distillation = self._from_teacher(taught, truth, maps, theirs)
            loss = self._weighted(entropy, distillation) + beta * guidance
        correct = ((logits + taught).argmax(1) == (labels if labels.ndim == 1 else labels.argmax(1))).sum()
        count = correct.new_tensor(len(labels))
        return loss, torch.stack([*(each.detach() * count for each in (entropy, guidance, distillation)), correct, count])

    def _from_teacher(
        self, taught: Tensor, truth: Tensor, maps: Sequence[Tensor], theirs: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The guidance loss and the distillation loss, zero where there is none."""
        guidance = distillation = torch.zeros((), device=taught.device)
        if self.guidance and maps:
            guidance = guidance_loss(maps, theirs, loss=self.guidance.loss, normalise=self.guidance.normalise)
        if self.guidance and self.guidance.distillation != "none":
            distillation = distillation_loss(taught, truth, self.guidance)
        return guidance, distillation

    def _weighted(self, entropy: Tensor, distillation: Tensor) -> Tensor:
        if self.guidance is None or self.guidance.distillation == "none":
            return entropy
        weight = self.guidance.distillation_weight
        return (1 - weight) * entropy + weight * distillation


def _alone(logits: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    return logits, logits, []


@dataclass(frozen=True)
class Update:
    """How the gradients of a batch change the weights.

    accumulate: parts in which the batch is worked on. sharpness_radius: of sharpness-aware minimisation (Foret et al.
    2021, equation 2), over all workers' pictures. gradient_clip: the largest norm. None switches one off.
    """

    optimizer: Optimizer
    scaler: GradScaler
    ema: AveragedModel | None
    network: nn.Module  # whose weights are averaged
    accumulate: int = 1
    sharpness_radius: float | None = None
    gradient_clip: float | None = None

    def __call__(self, gradients: Callable[[], Tensor]) -> Tensor:
        """One step of the optimizer; `gradients` adds up the gradients at the present weights and gives the sums."""
        sums = gradients()
        if self.sharpness_radius:
            self._sharpen(gradients, self.sharpness_radius)
        if self.gradient_clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._parameters(), self.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update_parameters(self.network)
        return sums

    def _sharpen(self, gradients: Callable[[], Tensor], radius: float) -> None:
        """Put in place the gradients of where the loss is about the highest within the radius."""
        sloped = [(parameter, parameter.grad) for parameter in self._parameters() if parameter.grad is not None]
        length = nn.utils.get_total_norm([slope for _, slope in sloped])
        before = [parameter.detach().clone() for parameter, _ in sloped]
        with torch.no_grad():
            for parameter, slope in sloped:
                parameter.add_(slope * (radius / (length + 1e-12)))
        self.optimizer.zero_grad()
        gradients()
        with torch.no_grad():
            for (parameter, _), old in zip(sloped, before, strict=True):
                parameter.copy_(old)

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def train_epoch(
    objective: Objective,
    batches: Batches,
    update: Update,
    *,
    first_step: int,
    learning_rate: Callable[[int], float],
    beta: Callable[[int], float],
    seed: int,
    stored: Iterable[Sequence[Tensor]] = repeat(()),
    on_images: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """One optimizer step per batch, with maps of a teacher that were stored, if there are any.

    Returns the sums of Objective (steps, 5), float64, over this worker's pictures.
    Every step starts from a random state of its own, the same on all workers: nothing random is carried from step to
    step, so a resumed run draws what an unbroken one draws.
    """
    objective.model.train()
    steps = []
    for step, ((images, labels), maps) in enumerate(zip(batches, stored, strict=False), first_step):
        for group in update.optimizer.param_groups:
            group["lr"] = learning_rate(step)

        def gradients(step: int = step, batch: Sequence[Tensor] = (images, labels, *maps)) -> Tensor:
            torch.manual_seed(_step_seed(seed, step))
            return _gradients(objective, batch, beta(step), update)

        steps.append(update(gradients))
        on_images(len(labels))
    return torch.stack(steps).double()


def _gradients(objective: Objective, batch: Sequence[Tensor], beta: float, update: Update) -> Tensor:
    """Add up the gradients of a batch (images, labels, stored maps), part by part; the sums over its pictures."""
    parts = list(zip(*(each.chunk(update.accumulate) for each in batch), strict=True))
    total = torch.zeros(5, device=batch[0].device)
    for index, (images, labels, *maps) in enumerate(parts, 1):
        with _in_step(objective.model, last=index == len(parts)):
            loss, sums = objective(images, labels, beta, *maps)
            update.scaler.scale(loss * (len(images) / len(batch[0]))).backward()
        total = total + sums
    return total


def _in_step(model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager:
    """Workers exchange gradients once a batch, after its last part."""
    return contextlib.nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()


def evaluate(network: nn.Module, batches: Batches, pixels: Pixels, *, classes: int, precision: torch.dtype) -> Tensor:
    """What this worker's pictures add to the counts, as one float64 vector, so that workers can be added up."""
    network.eval()
    device = pixels.mean.device
    total = torch.zeros(2 + classes * classes + CALIBRATION_BINS * 3, dtype=torch.float64, device=device)
    with torch.inference_mode():
        for images, labels in batches:
            with autocast(device, precision):
                logits = network(pixels(images))
            total += counts(logits.float(), labels, classes)
    return total


def logits(network: nn.Module, batches: Batches, pixels: Pixels) -> tuple[Tensor, Tensor]:
    """(N, K) float32 and the labels (N,), in the order of the batches, on the CPU."""
    network.eval()
    with torch.inference_mode():
        parts = [(network(pixels(images)).float().cpu(), labels.cpu()) for images, labels in batches]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def counts(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """What pictures with these logits (B, K) and labels (B,) add to the counts."""
    confidence, predicted = logits.softmax(1).max(1)
    correct = predicted == labels
    top = logits.topk(min(5, classes)).indices
    loss = F.cross_entropy(logits, labels, reduction="sum")
    confusion = torch.bincount(labels * classes + predicted, minlength=classes * classes)
    which = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    bins = torch.zeros(CALIBRATION_BINS, 3, dtype=torch.float64, device=logits.device)
    bins.index_add_(0, which, torch.stack([torch.ones_like(confidence), confidence, correct.float()], 1).double())
    top5 = (top == labels[:, None]).any(1).sum()
    return torch.cat([torch.stack([loss.double(), top5.double()]), confusion.double(), bins.flatten()])


def to_counts(total: Tensor, classes: int) -> Counts:
    """The vector of `evaluate`, summed over all workers, by its parts."""
    values = total.cpu().numpy()
    confusion = values[2 : 2 + classes * classes].astype(np.int64).reshape(classes, classes)
    bins = values[2 + classes * classes :].reshape(CALIBRATION_BINS, 3)
    return Counts(loss_sum=float(values[0]), top5=int(values[1]), confusion=confusion, bins=bins)


def autocast(device: torch.device, precision: torch.dtype) -> contextlib.AbstractContextManager:
    """Mixed precision where the recipe and the device have it, nothing elsewhere."""
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)


def device_of(use_gpu: bool | str) -> torch.device:
    """The GPU of this process, or the CPU; "auto" takes a GPU where there is one."""
    if use_gpu is True and not torch.cuda.is_available():
        raise UserError("cluster.use_gpu is true, but torch sees no GPU; set it to auto or false")
    return torch.device("cuda" if use_gpu and torch.cuda.is_available() else "cpu")


def precision_of(setting: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 on GPUs that have it, float32 elsewhere (bfloat16 products can be 100 times slower on CPUs)."""
    if setting == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if setting == "float16" and device.type != "cuda":
        raise UserError("precision float16 needs a GPU; set it to auto or float32")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[setting]


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])

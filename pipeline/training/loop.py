"""One training, from its first epoch or its last checkpoint to its end, as one worker sees it.

It knows only a small Reporter, so that the same loop runs in this process, under Ray and in tests.
"""

import logging
import platform
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline import metrics, models
from pipeline.config import Guidance, Training, UserError
from pipeline.data import batches
from pipeline.training import engine, guidance, optim
from pipeline.training.checkpoint import Damaged, Model, State

logger = logging.getLogger(__name__)

EVALUATION_BATCH = 512  # pictures at once; has no effect on any number


@dataclass(frozen=True)
class Pictures:
    """Pixels (N, H, W, C) uint8 and labels (N,) int64, perhaps read-only and shared with other workers of the node."""

    pixels: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Job:
    """All that decides the numbers of a training, and nothing about where it runs."""

    config: dict[str, Any]  # of the network to train, as in its model folder
    training: Training
    seed: int
    train: Pictures
    validation: Pictures
    guidance: Guidance | None = None
    teacher: Model | None = None


class Reporter(Protocol):
    """How a worker speaks with whatever runs it. All workers call `report` equally often."""

    rank: int
    world: int
    device: torch.device

    def checkpoints(self) -> Iterable[bytes]:
        """The contents of this run's checkpoints, newest first."""

    def report(self, row: dict[str, Any], checkpoint: Callable[[], bytes]) -> None:
        """An epoch has ended with the facts `row`; keep what `checkpoint()` gives before anything else is said of it."""

    def progress(self, images: int) -> None:
        """So many pictures more were trained on, over all workers."""


def train(job: Job, reporter: Reporter) -> State:
    """Run the epochs that are left. The network's weights at the end are those of the last epoch.

    Raises UserError where the loss is no longer a number.
    """
    state = _continued(job, reporter)
    data = [_on_device(pictures, reporter.device) for pictures in (job.train, job.validation)]
    guided = guidance.guided_epochs(job.guidance, job.training.epochs) if job.guidance else 0
    objective = None
    for epoch in range(len(state.history), job.training.epochs):
        if objective is None or epoch == guided:  # when guidance has ended, the teacher is let go
            objective = _objective(job, state, reporter, with_teacher=epoch < guided)
        row = _epoch(job, state, objective, data, reporter, epoch=epoch, guided=guided)
        state.history.append(row)
        reporter.report(row, state.to_bytes)
    return state


def _continued(job: Job, reporter: Reporter) -> State:
    """The state of the newest checkpoint that can be read, or a fresh one."""
    for content in reporter.checkpoints():
        state = _fresh(job, reporter.device)
        try:
            state.restore(content)
            return state
        except Damaged as error:
            logger.warning("a checkpoint is damaged (%s); going back to the one before", error)
    return _fresh(job, reporter.device)


def _fresh(job: Job, device: torch.device) -> State:
    """The network as its seed initialises it, the same with guidance as without."""
    torch.manual_seed(job.seed)
    network = models.build(job.config["architecture"].removeprefix("espalier_"), job.config["model_args"])
    preprocessing = job.config["pretrained_cfg"]
    models.fit_to_pictures(network, job.train.pixels, preprocessing["mean"], preprocessing["std"], seed=job.seed)
    projections: nn.Module = nn.ModuleList()
    if job.guidance and job.teacher:
        teacher, shape = _teacher(job.teacher), job.train.pixels.shape[1:]
        projections = guidance.projections(network, teacher, job.guidance, image_shape=shape, seed=job.seed)
    network, projections = network.to(device), projections.to(device)
    return State(network, projections, optim.build([network, projections], job.training))


def _teacher(model: Model) -> guidance.Teacher:
    return guidance.Teacher(model.network(), model.image_shape[:2])


def _objective(job: Job, state: State, reporter: Reporter, *, with_teacher: bool) -> engine.Objective:
    """What the coming epochs minimise; gradients are averaged over the workers."""
    model, teacher = state.network, None
    if with_teacher:
        assert job.guidance and job.teacher
        teacher = _teacher(job.teacher).to(reporter.device)
        layers = guidance.layers_of(state.network, job.guidance)
        model = guidance.GuidedStudent(state.network, state.projections, layers)
    if reporter.world > 1:
        model = DistributedDataParallel(model)
    return engine.Objective(
        model=model,
        teacher=teacher,
        pixels=_pixels(job, reporter.device),
        label_smoothing=job.training.label_smoothing,
        precision=engine.precision_of(job.training.precision, reporter.device),
    )


def _pixels(job: Job, device: torch.device) -> engine.Pixels:
    preprocessing = job.config["pretrained_cfg"]
    return engine.Pixels.of(preprocessing["mean"], preprocessing["std"], device)


def _on_device(pictures: Pictures, device: torch.device) -> tuple[Tensor, Tensor]:
    """The whole split as tensors, on the CPU without a copy."""
    return _tensor(pictures.pixels).to(device), _tensor(pictures.labels).to(device)


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():  # torch cannot keep a read-only array from being written to; nothing here does
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _epoch(
    job: Job,
    state: State,
    objective: engine.Objective,
    data: list[tuple[Tensor, Tensor]],
    reporter: Reporter,
    *,
    epoch: int,
    guided: int,
) -> dict[str, Any]:
    """Train and validate once; the facts of this epoch, over all workers. Loss in nats a picture, time in seconds."""
    recipe, started = job.training, time.perf_counter()
    steps = batches.steps_per_epoch(len(job.train.labels), recipe.batch_size)
    learning_rate = partial(
        optim.learning_rate_at,
        peak=recipe.learning_rate,
        warmup_steps=round(recipe.warmup_epochs * steps),
        total_steps=recipe.epochs * steps,
    )
    beta = partial(guidance.beta_at, guidance=job.guidance, end_step=guided * steps) if job.guidance else lambda step: 0.0
    sums = engine.train_epoch(
        objective,
        batches.training(
            *data[0],
            recipe.augmentation,
            batch_size=recipe.batch_size,
            seed=job.seed,
            epoch=epoch,
            rank=reporter.rank,
            world=reporter.world,
        ),
        state.optimizer,
        first_step=epoch * steps,
        learning_rate=learning_rate,
        beta=beta,
        seed=job.seed,
        on_images=lambda count: reporter.progress(count * reporter.world),
    )
    entropy, guiding, correct, images = _over_workers(sums, reporter).tolist()
    seconds = time.perf_counter() - started
    if not np.isfinite(entropy + guiding):
        raise UserError(f"the training loss is {entropy / images} in epoch {epoch + 1}; a lower learning_rate may help")
    validated = validate(job, state.network, data[1], reporter)
    return {
        "epoch": epoch + 1,
        "images_seen": (epoch + 1) * steps * recipe.batch_size,
        "learning_rate": learning_rate((epoch + 1) * steps - 1),
        "beta": beta(epoch * steps),
        "train_loss": entropy / images,
        "train_accuracy": correct / images,
        "guidance_loss": guiding / images,
        "val_loss": validated["loss"],
        "val_accuracy": validated["accuracy"],
        "train_seconds": seconds,
        "images_per_second": images / seconds,
        "hardware": hardware(reporter),
    }


def validate(job: Job, network: nn.Module, data: tuple[Tensor, Tensor], reporter: Reporter) -> dict[str, float]:
    """The summary over the validation split, the same for any number of workers."""
    if reporter.world > 1:  # BatchNorm statistics are each worker's own; the first worker's are kept
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)
    classes = len(job.config["pretrained_cfg"]["label_names"])
    shard = batches.evaluation(*data, batch_size=EVALUATION_BATCH, rank=reporter.rank, world=reporter.world)
    precision = engine.precision_of(job.training.precision, reporter.device)
    counted = engine.evaluate(network, shard, _pixels(job, reporter.device), classes=classes, precision=precision)
    return metrics.summary(engine.to_counts(_over_workers(counted, reporter), classes))


def hardware(reporter: Reporter) -> str:
    """What one worker computes on, and how many there are."""
    if reporter.device.type == "cuda":
        name = torch.cuda.get_device_name(reporter.device)
    else:
        name = f"{torch.get_num_threads()} threads of {platform.machine()} CPU"
    return name if reporter.world == 1 else f"{reporter.world} x {name}"


def _over_workers(sums: Tensor, reporter: Reporter) -> Tensor:
    if reporter.world > 1:
        distributed.all_reduce(sums)
    return sums

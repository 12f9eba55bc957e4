"""One training, from its first epoch or its last checkpoint to its end, as one worker sees it.

It knows only a small Reporter, so that the same loop runs in this process, under Ray and in tests.
"""

import logging
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline import metrics, models
from pipeline.config import Guidance, Training, UserError
from pipeline.data import batches, loading
from pipeline.data.augment.colours import Colours
from pipeline.data.augment.geometry import Frame
from pipeline.data.features import Features, shown
from pipeline.data.loading import Pictures, Source
from pipeline.durations import Timetable
from pipeline.training import engine, guidance, likeness, optim, selection
from pipeline.training.checkpoint import Damaged, Model, State

logger = logging.getLogger(__name__)

EVALUATION_BATCH = {"cpu": 128, "cuda": 512}  # pictures at once; has no effect on any number, but more leave a CPU's cache


@dataclass(frozen=True)
class Job:
    """All that decides the numbers of a training, and nothing about where it runs."""

    config: dict[str, Any]  # of the network to train, as in its model folder
    training: Training
    seed: int
    train: Pictures
    validation: Pictures | None  # None: nothing is measured of the epochs
    guidance: Guidance | None = None
    teacher: Model | None = None
    features: Features | None = None  # the teacher's maps of `train`, where guidance is offline
    until: int | None = None  # epochs after which it ends, though its schedules are made for more

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of what the network sees."""
        channels, height, width = self.config["pretrained_cfg"]["input_size"]
        return height, width, channels

    @property
    def classes(self) -> int:
        return len(self.config["pretrained_cfg"]["label_names"])

    @property
    def timetable(self) -> Timetable:
        return batches.timetable(len(self.train.labels), self.training)


class Reporter(Protocol):
    """How a worker speaks with whatever runs it. All workers call all but `progress` equally often."""

    rank: int
    world: int
    device: torch.device

    def checkpoints(self) -> Iterable[bytes]:
        """The contents of this run's checkpoints, newest first."""

    def newest(self) -> str:
        """Which checkpoint of this run is the newest, in words."""

    def report(self, row: dict[str, Any], checkpoint: Callable[[], bytes]) -> None:
        """An epoch has ended with the facts `row`; keep what `checkpoint()` gives before anything else is said of it."""

    def progress(self, images: int) -> None:
        """So many pictures more were trained on, over all workers."""


def train(job: Job, reporter: Reporter, *, residence: str = "auto") -> State:
    """Run the epochs that are left.

    residence says where the pictures lie meanwhile (`loading.open_source`).
    Raises UserError where the loss is no longer a number.
    """
    splits = [job.train] if job.validation is None else [job.train, job.validation]
    data = [loading.open_source(pictures, reporter.device, residence=residence) for pictures in splits]
    state = _continued(job, reporter, data[0])
    logger.info("the pictures are %s", " and ".join(source.name for source in data))
    alike = _likeness(job, state, data, reporter)
    objective = lessons = None
    while len(state.history) != job.until and not selection.is_over(state.history, job.training, job.timetable):
        if lessons != (now := _lessons(job, state.history)):  # when all have ended, the teacher is let go
            objective, lessons = _objective(job, state, reporter, now), now
        assert objective
        row = _epoch(job, state, objective, data, reporter) | (alike.of(state.network) if alike else {})
        state.history.append(row)
        averaged = "ema" in job.training.result
        if "best" in job.training.result and selection.is_best(state.history, ema=averaged):
            state.best = state.weights("ema" if averaged else "last")
        reporter.report(row, state.to_bytes)
    return state


def _continued(job: Job, reporter: Reporter, source: Source) -> State:
    """The state of the newest checkpoint that can be read, or a fresh one."""
    for content in reporter.checkpoints():
        state = _fresh(job, reporter.device, source)
        try:
            state.restore(content)
            return state
        except Damaged as error:
            logger.warning("a checkpoint is damaged (%s); going back to the one before", error)
    return _fresh(job, reporter.device, source)


def _fresh(job: Job, device: torch.device, source: Source) -> State:
    """The network as its seed initialises it, the same with guidance as without."""
    torch.manual_seed(job.seed)
    network = models.build(job.config["architecture"].removeprefix("espalier_"), job.config["model_args"])
    models.fit_to_pictures(network, partial(_sample, job, source))
    projections: nn.Module = nn.ModuleList()
    if job.guidance and job.teacher:
        teacher = guidance.Teacher(job.teacher.network(), job.teacher.image_shape[:2], job.guidance.teacher_layers)
        projections = guidance.projections(network, teacher, job.guidance, image_shape=job.image_shape, seed=job.seed)
    network, projections = network.to(device), projections.to(device)
    if device.type == "cuda":
        network = network.to(memory_format=torch.channels_last)
    decay = job.training.ema_decay
    ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None
    half = engine.precision_of(job.training.precision, device) == torch.float16
    scaler = GradScaler(device.type, enabled=half)
    return State(network, projections, optim.build([network, projections], job.training), scaler, ema)


def _sample(job: Job, source: Source, count: int) -> Tensor:
    """So many training pictures (count, C, H, W) as the network sees them, drawn by the seed."""
    rows = np.random.default_rng(job.seed).permutation(len(source.labels))[:count]
    (images,) = source.fetch([loading.Take(np.sort(rows))], Frame(job.image_shape[0]))
    return _pixels(job, torch.device("cpu"))(images.permute(0, 2, 3, 1).cpu())


@dataclass(frozen=True)
class Lessons:
    """What the teacher gives in an epoch: its maps, its answers, or neither."""

    maps: bool
    answers: bool


def _lessons(job: Job, history: Sequence[dict[str, Any]]) -> Lessons:
    """Those of the next epoch."""
    if job.guidance is None:
        return Lessons(maps=False, answers=False)
    goes_on = guidance.goes_on(job.guidance, history, job.timetable)
    return Lessons(maps=goes_on, answers=job.guidance.distillation != "none")


def _objective(job: Job, state: State, reporter: Reporter, lessons: Lessons) -> engine.Objective:
    """What the coming epochs minimise; gradients are averaged over the workers."""
    model: Any = state.network
    teacher = None
    if lessons.maps or lessons.answers:
        assert job.guidance and job.teacher
        if not job.features:
            seen = job.guidance.teacher_layers if lessons.maps else []
            teacher = guidance.Teacher(job.teacher.network(), job.teacher.image_shape[:2], seen).to(reporter.device)
        layers = guidance.layers_of(state.network, job.guidance) if lessons.maps else []
        projections = state.projections if lessons.maps else nn.ModuleList()
        model = guidance.GuidedStudent(state.network, projections, layers, distilled=lessons.answers)
    if job.training.compile:
        model = torch.compile(model)
    if reporter.world > 1 and reporter.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if reporter.world > 1:
        model = DistributedDataParallel(model)
    return engine.Objective(
        model=model,
        teacher=teacher,
        guidance=job.guidance if lessons.maps or lessons.answers else None,
        pixels=_pixels(job, reporter.device),
        label_smoothing=job.training.label_smoothing,
        precision=engine.precision_of(job.training.precision, reporter.device),
    )


def _likeness(job: Job, state: State, data: Sequence[Source], reporter: Reporter) -> likeness.Likeness | None:
    """What measures after each epoch how like the teacher's the student's maps are; None where they are not guided."""
    if not (job.guidance and job.teacher and guidance.goes_on(job.guidance, [], job.timetable)):
        return None
    if job.validation is None or len(job.validation.labels) < likeness.FEWEST_PICTURES:
        return None
    teacher = guidance.Teacher(job.teacher.network(), job.teacher.image_shape[:2], job.guidance.teacher_layers)
    layers, pictures = guidance.layers_of(state.network, job.guidance), likeness.pictures(data[1], side=job.image_shape[0])
    return likeness.Likeness(teacher.to(reporter.device), layers, pictures, _pixels(job, reporter.device))


def _colours(job: Job, device: torch.device) -> Colours:
    preprocessing = job.config["pretrained_cfg"]
    return Colours.of(preprocessing["mean"], preprocessing["std"], device)


def _pixels(job: Job, device: torch.device) -> engine.Pixels:
    preprocessing = job.config["pretrained_cfg"]
    return engine.Pixels.of(preprocessing["mean"], preprocessing["std"], device)


def _epoch(job: Job, state: State, objective: engine.Objective, data: list[Source], reporter: Reporter) -> dict[str, Any]:
    """Train and validate once; the facts of this epoch, over all workers. Loss in nats a picture, time in seconds."""
    epoch, started = len(state.history), time.perf_counter()
    first, end = (job.timetable.steps_after(epochs) for epochs in (epoch, epoch + 1))
    rate = partial(optim.learning_rate_at, training=job.training, timetable=job.timetable)
    guided = _lessons(job, state.history).maps
    beta = _beta(job) if guided else lambda step: 0.0
    sums = engine.train_epoch(
        objective,
        _batches(job, data[0], reporter, epoch=epoch),
        _update(job, state),
        first_step=first,
        learning_rate=rate,
        beta=beta,
        seed=job.seed,
        stored=_stored(job, job.features, reporter, epoch=epoch) if guided and job.features else repeat(()),
        on_images=lambda count: reporter.progress(count * reporter.world),
    )
    by_step = _over_workers(sums, reporter)
    seconds = time.perf_counter() - started
    _refuse_what_is_no_number(by_step[:, :3].sum(1), rate, reporter, first_step=first, epoch=epoch)
    entropy, guiding, distilling, correct, images = by_step.sum(0).tolist()
    return {
        "epoch": epoch + 1,
        "images_seen": end * job.training.batch_size,
        "learning_rate": rate(end - 1),
        "beta": beta(first),
        "train_loss": entropy / images,
        "train_accuracy": correct / images,
        "guidance_loss": guiding / images,
        **({"distillation_loss": distilling / images} if job.guidance and job.guidance.distillation != "none" else {}),
        **(_validated(job, state, data[1], reporter) if job.validation else {}),
        "train_seconds": seconds,
        "images_per_second": images / seconds,
        "hardware": hardware(reporter),
        "data": data[0].name,
    }


def _beta(job: Job) -> Callable[[int], float]:
    assert job.guidance
    return partial(guidance.beta_at, guidance=job.guidance, end_step=guidance.end_step(job.guidance, job.timetable))


def _batches(job: Job, source: Source, reporter: Reporter, *, epoch: int) -> engine.Batches:
    return batches.training(
        source,
        job.training,
        _colours(job, reporter.device),
        side=job.image_shape[0],
        classes=job.classes,
        seed=job.seed,
        epoch=epoch,
        rank=reporter.rank,
        world=reporter.world,
    )


def _stored(job: Job, features: Features, reporter: Reporter, *, epoch: int) -> Iterable[list[Tensor]]:
    """The teacher's maps of each batch."""
    when = {"seed": job.seed, "epoch": epoch}
    mine = batches.shares(len(job.train.labels), job.training, **when, rank=reporter.rank, world=reporter.world)
    return shown(features.opened(), mine, job.training.augmentation, reporter.device, side=job.image_shape[0], **when)


def _update(job: Job, state: State) -> engine.Update:
    recipe = job.training
    return engine.Update(
        optimizer=state.optimizer,
        scaler=state.scaler,
        ema=state.ema,
        network=state.network,
        accumulate=recipe.accumulate,
        sharpness_radius=recipe.sharpness_radius,
        gradient_clip=recipe.gradient_clip,
    )


def _refuse_what_is_no_number(
    losses: Tensor, rate: Callable[[int], float], reporter: Reporter, *, first_step: int, epoch: int
) -> None:
    """Raise UserError for the first step whose loss is infinite or not a number."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = first_step + int(bad[0])
        raise UserError(
            f"the training loss is no number from step {step} on (epoch {epoch + 1}, learning rate {rate(step):.3g}); "
            f"a lower learning_rate or a gradient_clip may help; the newest checkpoint: {reporter.newest()}"
        )


def _validated(job: Job, state: State, source: Source, reporter: Reporter) -> dict[str, float]:
    """Loss and accuracy on validation, of the weights and of their average where there is one."""
    networks = {"val": state.network} if state.ema is None else {"val": state.network, "val_ema": state.ema.module}
    scores = {name: validate(job, network, source, reporter) for name, network in networks.items()}
    return {f"{name}_{key}": score[key] for name, score in scores.items() for key in ("loss", "accuracy")}


def validate(job: Job, network: nn.Module, source: Source, reporter: Reporter) -> dict[str, float]:
    """The summary over the validation split, the same for any number of workers."""
    if reporter.world > 1:  # BatchNorm statistics are each worker's own; the first worker's are kept
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)
    where = {"rank": reporter.rank, "world": reporter.world}
    shard = batches.evaluation(source, side=job.image_shape[0], batch_size=EVALUATION_BATCH[reporter.device.type], **where)
    precision = engine.precision_of(job.training.precision, reporter.device)
    counted = engine.evaluate(network, shard, _pixels(job, reporter.device), classes=job.classes, precision=precision)
    return metrics.summary(engine.to_counts(_over_workers(counted, reporter), job.classes))


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

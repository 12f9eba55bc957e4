"""One training, in this process or on Ray, with the same checkpoints and the same result.

Everything is kept under `scratch`/<identity>: the same run goes on where it stopped, no other can pick it up, and a
finished one is not trained twice. Ray and torch are imported only where they are needed, so that processes which only
pass things on start fast.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from pipeline import checkpoints, files, preflight, scheduling
from pipeline.checkpoints import Checkpoints
from pipeline.config import Cluster, UserError
from pipeline.durations import SECONDS, parsed
from pipeline.together import InThread

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.training.loop import Job

logger = logging.getLogger(__name__)

T = TypeVar("T")

WEIGHTS, HISTORY = "model.safetensors", "history.json"


@dataclass(frozen=True)
class Trained:
    """What a training leaves: one row per epoch, and the weights after the last."""

    history: list[dict[str, Any]]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Listener:
    """Whoever wants to know how a training goes on; called in the thread that trains."""

    epoch: Callable[[dict[str, Any]], None] = lambda row: None
    images: Callable[[int], None] = lambda count: None
    note: Callable[[str], None] = lambda line: None  # what was chosen, to be shown


def fit(job: Job, cluster: Cluster, *, identity: str, listener: Listener) -> Trained:
    """Train, or go on training, or give what was trained before under this identity.

    Raises UserError for what a person can put right, KeyboardInterrupt when interrupted; the checkpoints stay.
    """
    scratch = files.in_project(cluster.scratch) / identity
    with alone(scratch):
        if (scratch / "finished").is_dir():
            return _read(scratch / "finished")
        place = checkpoints.inside(cluster.checkpoints or cluster.scratch, identity, "checkpoints")
        trained = (_in_process if cluster.num_workers == 0 else _on_ray)(job, cluster, place, listener)
        _write(scratch / "finished", trained)
        Checkpoints(place).delete()
        return trained


@contextmanager
def alone(scratch: Path) -> Iterator[None]:
    """Hold a run for this process; another that wants the same one waits for its end."""
    scratch.mkdir(parents=True, exist_ok=True)
    lock = FileLock(scratch / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.warning("another process trains run %s; waiting for it", scratch.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write(folder: Path, trained: Trained) -> None:
    from safetensors.torch import save_file

    with files.replacing(folder) as aside:
        aside.mkdir()
        save_file(trained.weights, aside / WEIGHTS)
        files.write_json(aside / HISTORY, trained.history)


def _read(folder: Path) -> Trained:
    from safetensors.torch import load_file

    return Trained(json.loads((folder / HISTORY).read_text()), load_file(folder / WEIGHTS))


# In this process


class Keeper:
    """Writes a checkpoint whenever the last one is old enough: "10 seconds", or "5 epochs"."""

    def __init__(self, place: str, interval: str) -> None:
        self.kept, self._interval, self._written = Checkpoints(place), parsed(interval), time.monotonic()

    def epoch(self, epoch: int, checkpoint: Callable[[], bytes]) -> None:
        """An epoch has ended, the first of which is 1, after which the state is what `checkpoint()` gives."""
        if self._is_due(epoch):
            self.kept.write(epoch, checkpoint())
            self._written = time.monotonic()

    def _is_due(self, epoch: int) -> bool:
        number, unit = self._interval
        if unit == "epoch":
            return epoch % max(1, math.ceil(number)) == 0
        return time.monotonic() - self._written >= number * SECONDS[unit]


class LocalReporter:
    """One worker, this process."""

    rank, world = 0, 1

    def __init__(self, keeper: Keeper, device: torch.device, listener: Listener) -> None:
        self.device, self._keeper, self._listener = device, keeper, listener

    def checkpoints(self) -> Iterator[bytes]:
        return self._keeper.kept.newest_first()

    def newest(self) -> str:
        return self._keeper.kept.newest()

    def report(self, row: dict[str, Any], checkpoint: Callable[[], bytes]) -> None:
        self._keeper.epoch(row["epoch"], checkpoint)
        self._listener.epoch(row)

    def progress(self, images: int) -> None:
        self._listener.images(images)


def _in_process(job: Job, cluster: Cluster, place: str, listener: Listener) -> Trained:
    import torch

    from pipeline.training import engine, loop

    if cluster.cpus_per_worker:
        torch.set_num_threads(cluster.cpus_per_worker)
    keeper = Keeper(place, cluster.checkpoint_interval)
    keeper.kept.check()
    reporter = LocalReporter(keeper, engine.device_of(cluster.use_gpu), listener)
    state = loop.train(job, reporter, residence=cluster.data)
    return Trained(state.history, state.weights(job.training.result))


# On Ray

ENVIRONMENT = {  # before Ray is imported; what is set already stays
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # seconds until the end, or the loss of a worker, is noticed
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",  # until a worker that is silent is taken for lost
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
OWN_ENVIRONMENT = {  # for a Ray of our own: every process that does not start is a second saved on two cores
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_num_prestart_python_workers": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_AUTH_MODE": "token",
}
SECONDS_BETWEEN_EVENTS = 0.25
SECONDS_BETWEEN_RESIZES = 60.0  # elastic: a training that may have more workers looks for room so often
SECONDS_BETWEEN_LOOKS = 10.0  # whether lost nodes have left too little room
COLLECTIVE_TIMEOUT_SECONDS = 300  # a lost worker is noticed after this at the latest


class RayReporter:
    """One of the workers of a Ray Train run. The first one speaks, through a queue that the driver reads, and it alone
    needs to reach the checkpoints. They are not Ray's, whose record of them can lag behind the files when it dies, and
    whose form changes with its version."""

    def __init__(self, events: Any, keeper: Keeper, device: torch.device) -> None:
        from ray import train

        context = train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device, self._keeper, self._events = device, keeper, events
        self._images, self._told = 0, float("-inf")

    def checkpoints(self) -> Iterator[bytes]:
        mine = self._keeper.kept.newest_first() if self.rank == 0 else iter(())
        while (content := self._from_the_first(next(mine, None))) is not None:
            yield content

    def newest(self) -> str:
        return self._from_the_first(self._keeper.kept.newest() if self.rank == 0 else None) or ""

    def _from_the_first(self, value: T | None) -> T | None:
        if self.world == 1:
            return value
        import torch

        shared: list[T | None] = [value]
        torch.distributed.broadcast_object_list(shared, device=self.device)
        return shared[0]

    def first(self, action: Callable[[], None]) -> None:
        """The first worker does this; a UserError of it is raised by all, so that none waits for one that has stopped."""
        mistake = None
        if self.rank == 0:
            try:
                action()
            except UserError as error:
                mistake = str(error)
        if mistake := self._from_the_first(mistake):
            raise UserError(mistake)

    def report(self, row: dict[str, Any], checkpoint: Callable[[], bytes]) -> None:
        self.first(lambda: self._keeper.epoch(row["epoch"], checkpoint))
        if self.rank == 0:
            self._events.put(("epoch", row))

    def progress(self, images: int) -> None:
        self._images += images
        if self.rank == 0 and time.monotonic() - self._told > SECONDS_BETWEEN_EVENTS:
            self._events.put_nowait(("images", self._images))
            self._images, self._told = 0, time.monotonic()


def _on_ray(job: Job, cluster: Cluster, place: str, listener: Listener) -> Trained:
    """Run the training as a Ray Train job, and pass on what its first worker tells."""
    with ray_session() as ours_alone, tempfile.TemporaryDirectory() as unused:
        import ray
        from ray.util.queue import Queue

        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}  # no lost node takes the queue with it
        events = Queue(actor_options={"num_cpus": 0, "label_selector": here})
        config = {
            "job": ray.put(job),
            "events": events,
            "place": place,
            "checkpoint_interval": cluster.checkpoint_interval,
            "residence": cluster.data,
        }
        nodes = nodes_of_ray()
        each = scheduling.worker(cluster, nodes, alone=ours_alone)
        listener.note(scheduling.choice(cluster, nodes, each))
        _refuse_a_place_that_is_not_shared(cluster, each)
        trainer = _trainer(config, cluster, each, unused)
        running = InThread(trainer.fit)  # in the main thread, Ray would take SIGINT, and exit with 0
        tell_of_lack = _told_once(lambda: scheduling.lack(cluster, nodes_of_ray(), each), listener.note)
        while not running.done():
            _pass_on(events, listener, seconds=0.2)
            tell_of_lack()
        _pass_on(events, listener, seconds=0)
        outcome = running.result().return_value
    if "mistake" in outcome:
        raise UserError(outcome["mistake"])
    return Trained(outcome["history"], _weights(outcome["weights"]))


def _weights(content: bytes) -> dict[str, Tensor]:
    from safetensors.torch import load

    return load(content)


@contextmanager
def ray_session() -> Iterator[bool]:
    """Ray for this block: the cluster that RAY_ADDRESS names, or one of our own on this machine, ended with the block.

    A Ray that this process has begun before is used, and left as it is. Gives whether it is for this block alone.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield False
        return
    joined = bool(os.environ.get("RAY_ADDRESS"))
    if not joined:  # it listens on all addresses, so it gets a secret that only this process and its children know
        os.environ.update(OWN_ENVIRONMENT)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray reads it once in a process
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    import ray

    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    code = {"py_modules": [str(Path(__file__).parent)]}  # other nodes need not have it
    own: dict[str, Any] = {"runtime_env": code} if joined else {"address": "local", "include_dashboard": False}
    terminated = signal.getsignal(signal.SIGTERM)
    ray.init(**quiet, **own)
    if callable(terminated):  # Ray has put its own in the place, which ends the process at once
        signal.signal(signal.SIGTERM, terminated)
    try:
        yield not joined
    finally:
        ray.shutdown()


def nodes_of_ray() -> list[scheduling.Resources]:
    """What each node of the Ray in use has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _refuse_a_place_that_is_not_shared(cluster: Cluster, each: scheduling.Resources) -> None:
    """Where a worker may come onto one of several nodes, these must share the place of the checkpoints."""
    import ray

    able = tuple(
        preflight.Node(node["NodeID"], node["NodeManagerHostname"])
        for node in ray.nodes()
        if node["Alive"] and scheduling.workers_with_room([node["Resources"]], each)
    )
    if len(able) > 1:
        preflight.refuse_a_place_that_is_not_shared(checkpoints.inside(cluster.checkpoints or cluster.scratch), able)


def _trainer(config: dict[str, Any], cluster: Cluster, each: scheduling.Resources, folder: str) -> Any:
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer

    sizes = cluster.sizes
    return TorchTrainer(
        _worker,
        train_loop_config=config,
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_SECONDS),
        scaling_config=train.ScalingConfig(
            num_workers=sizes[0] if len(sizes) == 1 else (sizes[0], sizes[-1]),
            use_gpu="GPU" in each,
            resources_per_worker=each,
            placement_strategy=cluster.placement.upper(),
            elastic_resize_monitor_interval_s=SECONDS_BETWEEN_RESIZES,
        ),
        run_config=train.RunConfig(
            name=Path(folder).name,
            storage_path=folder,
            failure_config=train.FailureConfig(max_failures=cluster.max_failures),
            logging_config=train.LoggingConfig("ERROR"),
        ),
    )


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """What each worker of a Ray Train run does; the first one's return value is the run's."""
    import ray
    from ray.train.torch import get_device
    from safetensors.torch import save

    from pipeline.training import loop

    keeper = Keeper(config["place"], config["checkpoint_interval"])
    reporter = RayReporter(config["events"], keeper, get_device())
    try:
        reporter.first(keeper.kept.check)
        job = ray.get(config["job"])
        state = loop.train(job, reporter, residence=config["residence"])
    except UserError as error:  # a restart would only repeat it
        return {"mistake": str(error)}
    return {"history": state.history, "weights": save(state.weights(job.training.result))}


def _told_once(line: Callable[[], str], note: Callable[[str], None]) -> Callable[[], None]:
    """Looks every few seconds for a line, and notes it when it is another one than before."""
    looked, before = time.monotonic(), ""

    def look() -> None:
        nonlocal looked, before
        if time.monotonic() - looked > SECONDS_BETWEEN_LOOKS:
            looked, last, before = time.monotonic(), before, line()
            if before and before != last:
                note(before)

    return look


def _pass_on(events: Any, listener: Listener, *, seconds: float) -> None:
    """Tell the listener what the queue holds, waiting up to `seconds` for something."""
    from ray.util.queue import Empty

    with suppress(Empty):
        while True:
            kind, value = events.get(block=seconds > 0, timeout=seconds or None)
            (listener.epoch if kind == "epoch" else listener.images)(value)

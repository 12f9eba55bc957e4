"""One training, in this process or on Ray, with the same checkpoints and the same result.

Everything is kept under `scratch`/<identity>: the same run goes on where it stopped, no other can pick it up, and a
finished one is not trained twice. Ray and torch are imported only where they are needed, so that processes which only
pass things on start fast.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import files
from pipeline.config import Cluster, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.training.loop import Job

CHECKPOINTS_KEPT = 2
WEIGHTS, HISTORY = "model.safetensors", "history.json"


@dataclass(frozen=True)
class Trained:
    """What a training leaves: one row per epoch, and the weights after the last."""

    history: list[dict[str, Any]]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Listener:
    """Whoever wants to know how a training goes on; called in the driver's main thread."""

    epoch: Callable[[dict[str, Any]], None] = lambda row: None
    images: Callable[[int], None] = lambda count: None


def fit(job: Job, cluster: Cluster, *, identity: str, listener: Listener) -> Trained:
    """Train, or go on training, or give what was trained before under this identity.

    Raises UserError for what a person can put right, KeyboardInterrupt when interrupted; the checkpoints stay.
    """
    scratch = Path(cluster.scratch).resolve() / identity
    if (scratch / "finished").is_dir():
        return _read(scratch / "finished")
    trained = (_in_process if cluster.num_workers == 0 else _on_ray)(job, cluster, scratch, listener)
    _write(scratch / "finished", trained)
    shutil.rmtree(scratch / "checkpoints", ignore_errors=True)
    return trained


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


class LocalReporter:
    """One worker, this process; checkpoints are files in `folder`, the newest two are kept."""

    rank, world = 0, 1

    def __init__(self, folder: Path, device: torch.device, listener: Listener) -> None:
        self.device, self._folder, self._listener = device, folder, listener

    def checkpoints(self) -> Iterable[bytes]:
        return (path.read_bytes() for path in reversed(self._paths()))

    def report(self, row: dict[str, Any], checkpoint: Callable[[], bytes]) -> None:
        files.write(self._folder / f"epoch-{row['epoch']:05}.pt", checkpoint())
        for path in self._paths()[:-CHECKPOINTS_KEPT]:
            path.unlink()
        self._listener.epoch(row)

    def progress(self, images: int) -> None:
        self._listener.images(images)

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("epoch-*.pt"))


def _in_process(job: Job, cluster: Cluster, scratch: Path, listener: Listener) -> Trained:
    import torch

    from pipeline.training import engine, loop

    if cluster.cpus_per_worker:
        torch.set_num_threads(cluster.cpus_per_worker)
    reporter = LocalReporter(scratch / "checkpoints", engine.device_of(cluster.use_gpu), listener)
    state = loop.train(job, reporter, residence=cluster.data)
    return Trained(state.history, state.weights())


# On Ray

ENVIRONMENT = {  # before Ray is imported; what is set already stays
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # seconds until an epoch is noticed
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
COLLECTIVE_TIMEOUT_SECONDS = 300  # a lost worker is noticed after this at the latest
STATE = "state.pt"


class RayReporter:
    """One of the workers of a Ray Train run; the first one speaks, through a queue that the driver reads."""

    def __init__(self, events: Any, device: torch.device) -> None:
        from ray import train

        context = train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device, self._events = device, events
        self._images, self._told = 0, time.monotonic()

    def checkpoints(self) -> Iterator[bytes]:
        from ray import train

        if (checkpoint := train.get_checkpoint()) is not None:
            with checkpoint.as_directory() as folder:
                yield Path(folder, STATE).read_bytes()

    def report(self, row: dict[str, Any], checkpoint: Callable[[], bytes]) -> None:
        from ray import train

        if self.rank != 0:
            train.report({})
            return
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, STATE).write_bytes(checkpoint())
            kept = train.Checkpoint.from_directory(folder)
            train.report({"epoch": row["epoch"]}, checkpoint=kept, checkpoint_dir_name=f"epoch-{row['epoch']:05}")
        self._events.put_nowait(("epoch", row))

    def progress(self, images: int) -> None:
        self._images += images
        if self.rank == 0 and time.monotonic() - self._told > SECONDS_BETWEEN_EVENTS:
            self._events.put_nowait(("images", self._images))
            self._images, self._told = 0, time.monotonic()


def _on_ray(job: Job, cluster: Cluster, scratch: Path, listener: Listener) -> Trained:
    """Run the training as a Ray Train job, and pass on what its first worker tells."""
    with _ray():
        import ray
        from ray.util.queue import Queue

        events = Queue(actor_options={"num_cpus": 0})
        trainer = _trainer({"job": ray.put(job), "events": events, "residence": cluster.data}, cluster, scratch)
        running = _in_thread(trainer.fit)
        while not running.done():
            _pass_on(events, listener, seconds=0.2)
        _pass_on(events, listener, seconds=0)
        outcome = running.result().return_value
    if "mistake" in outcome:
        raise UserError(outcome["mistake"])
    return Trained(outcome["history"], _weights(outcome["weights"]))


def _weights(content: bytes) -> dict[str, Tensor]:
    from safetensors.torch import load

    return load(content)


@contextmanager
def _ray() -> Iterator[None]:
    """Ray for this block: the cluster that RAY_ADDRESS names, or one of our own on this machine, ended with the block."""
    joined = bool(os.environ.get("RAY_ADDRESS"))
    if not joined:  # it listens on all addresses, so it gets a secret that only this process and its children know
        os.environ.update(OWN_ENVIRONMENT)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray reads it once in a process
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    import ray

    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    own: dict[str, Any] = {} if joined else {"address": "local", "include_dashboard": False}
    ray.init(**quiet, **own)
    try:
        yield
    finally:
        ray.shutdown()


def _trainer(config: dict[str, Any], cluster: Cluster, scratch: Path) -> Any:
    import ray
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer

    available = ray.cluster_resources()
    use_gpu = bool(available.get("GPU")) if cluster.use_gpu == "auto" else cluster.use_gpu
    cpus = cluster.cpus_per_worker or _cpu_share(available, cluster)
    _refuse_what_never_fits(available, cluster, cpus=cpus, use_gpu=use_gpu)
    return TorchTrainer(
        _worker,
        train_loop_config=config,
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_SECONDS),
        scaling_config=train.ScalingConfig(
            num_workers=cluster.num_workers, use_gpu=use_gpu, resources_per_worker=_each(cpus, use_gpu)
        ),
        run_config=train.RunConfig(
            name="checkpoints",
            storage_path=str(scratch),
            failure_config=train.FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=train.CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
            logging_config=train.LoggingConfig("ERROR"),
        ),
    )


def _each(cpus: int, use_gpu: bool) -> dict[str, float]:
    return {"CPU": cpus, "GPU": 1} if use_gpu else {"CPU": cpus}


def _cpu_share(available: dict[str, float], cluster: Cluster) -> int:
    """All CPUs of an own Ray shared out; one per worker on a cluster that others use too."""
    return 1 if os.environ.get("RAY_ADDRESS") else max(1, int(available["CPU"]) // cluster.num_workers)


def _refuse_what_never_fits(available: dict[str, float], cluster: Cluster, *, cpus: int, use_gpu: bool) -> None:
    for resource, each in _each(cpus, use_gpu).items():
        have = int(available.get(resource, 0))
        if cluster.num_workers * each > have:
            raise UserError(
                f"cluster.num_workers {cluster.num_workers} with {each:g} {resource} each would wait for ever: "
                f"Ray has {have} {resource}; lower it, or cluster.cpus_per_worker"
            )


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """What each worker of a Ray Train run does; the first one's return value is the run's."""
    import ray
    from ray.train.torch import get_device
    from safetensors.torch import save

    from pipeline.training import loop

    reporter = RayReporter(config["events"], get_device())
    try:
        state = loop.train(ray.get(config["job"]), reporter, residence=config["residence"])
    except UserError as error:  # a restart would only repeat it
        return {"mistake": str(error)}
    return {"history": state.history, "weights": save(state.weights())}


def _in_thread(action: Callable[[], Any]) -> Future[Any]:
    """Run the action beside the main thread: only there does Ray leave SIGINT alone, on which it would exit with 0."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _pass_on(events: Any, listener: Listener, *, seconds: float) -> None:
    """Tell the listener what the queue holds, waiting up to `seconds` for something."""
    from ray.util.queue import Empty

    with suppress(Empty):
        while True:
            kind, value = events.get(block=seconds > 0, timeout=seconds or None)
            (listener.epoch if kind == "epoch" else listener.images)(value)

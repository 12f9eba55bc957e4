"""Share of a training's time that checkpoints and reports take, at epochs of digits' size and of CIFAR's.

Digits: the stage `unguided vit 0` of this project (`dvc repro prepare` first), with its checkpoints, MLflow in SQLite and
progress lines. CIFAR: a ViT of 1.8 million weights on noise of 32 px; its epochs are short, and counted as 50,000 pictures.
Time is the processor's, over all threads, which other processes do not change, and by the clock, which they do. What a
run costs once, as opening it in MLflow, is not in it (`python -m benchmarks.startup`).
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from typing import Any

import torch

from benchmarks.training import example
from pipeline import checkpoints, tracking
from pipeline.config import Tracking
from pipeline.distributed import Keeper, Listener, LocalReporter
from pipeline.progress import progress
from pipeline.training import loop
from pipeline.training.loop import Job
from stages import unguided

CIFAR_PICTURES, SHOWN = 50_000, 2_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10, help="cluster.checkpoint_interval")
    arguments = parser.parse_args()
    digits = unguided.plan("vit", 0).run.job
    jobs = {"digits": (digits, 1.0), "CIFAR": (example(32, SHOWN), CIFAR_PICTURES / SHOWN)}
    for name, (job, times) in jobs.items():
        spent = measured(replace(job, training=job.training.model_copy(update={"duration": f"{arguments.epochs} epochs"})))
        for line in lines(spent, times, arguments.seconds):
            print(f"{name:8}{line}")


@dataclass
class Spent:
    """Seconds of processor and clock for each time that something was done."""

    checkpoint: list[tuple[float, float]] = field(default_factory=list)
    report: list[tuple[float, float]] = field(default_factory=list)
    training: list[tuple[float, float]] = field(default_factory=list)  # all of it, once


def measured(job: Job) -> Spent:
    """Train with a checkpoint and a report after every epoch, and take the time of each."""
    spent = Spent()
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(StringIO()), _listener(job, scratch) as listener:
        keeper = Keeper(checkpoints.inside(scratch, "run", "checkpoints"), interval="0 seconds")
        keeper.epoch = _timed(keeper.epoch, spent.checkpoint)  # type: ignore[method-assign]
        told = Listener(epoch=_timed(listener.epoch, spent.report), images=listener.images)
        reporter = LocalReporter(keeper, torch.device("cpu"), told)
        _timed(loop.train, spent.training)(job, reporter)
    return spent


@contextmanager
def _listener(job: Job, scratch: str) -> Iterator[Listener]:
    """The one that the stages have: MLflow and a progress bar."""
    settings = Tracking(enabled=True, experiment="benchmark", folder=f"{scratch}/mlruns")
    images = job.timetable.epochs * len(job.train.labels)
    with (
        tracking.run(settings, identity="benchmark", name="benchmark", tags={}, params={}) as tracked,
        progress("benchmark", epochs=job.timetable.epochs, images=images) as shown,
    ):

        def epoch(row: dict[str, Any]) -> None:
            shown.epoch(row)
            tracked.epoch(row)

        yield Listener(epoch=epoch, images=shown.images)


def _timed(action: Callable[..., Any], seconds: list[tuple[float, float]]) -> Callable[..., Any]:
    def timed(*given: Any) -> Any:
        before = time.process_time(), time.perf_counter()
        result = action(*given)
        seconds.append((time.process_time() - before[0], time.perf_counter() - before[1]))
        return result

    return timed


def lines(spent: Spent, times: float, between: float) -> Iterator[str]:
    """For processor and clock: what an epoch of so many times the pictures takes, and the shares of the rest.

    between: seconds that pass from one checkpoint to the next at least.
    """
    for index, name in enumerate(("processor", "clock")):
        checkpoint, report, whole = (
            sum(each[index] for each in taken) for taken in (spent.checkpoint, spent.report, spent.training)
        )
        epochs = len(spent.report)
        epoch = (whole - checkpoint - report) / epochs * times
        checkpoint, report = checkpoint / epochs, report / epochs
        cadence = max(1.0, between / epoch)  # epochs from one checkpoint to the next
        yield (
            f"{name:10} epoch {epoch:8.2f} s  checkpoint {1000 * checkpoint:5.1f} ms, {checkpoint / cadence / epoch:7.3%}  "
            f"report {1000 * report:5.1f} ms, {report / epoch:7.3%}  both {(checkpoint / cadence + report) / epoch:7.3%}"
        )


if __name__ == "__main__":
    main()

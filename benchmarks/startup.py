"""Seconds from the start of a training stage to its first step, in the stage's own process and on Ray.

Runs the real stage `unguided vit 0` in a scratch folder, over the prepared data of this project (`dvc repro prepare`),
and interrupts it at its first step; the first round is not counted, since it creates the MLflow store.
"""

import argparse
import os
import runpy
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path.cwd()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch:
        measured = [{workers: seconds_to_first_step(Path(scratch), workers) for workers in (0, 1)} for _ in range(rounds + 1)]
    for workers, name in ((0, "in the stage's process"), (1, "Ray, one worker")):
        seconds = sorted(row[workers] for row in measured[1:])
        print(
            f"{name:24} median {statistics.median(seconds):5.1f} s  from {seconds[0]:.1f} to {seconds[-1]:.1f}, {rounds} runs"
        )


def seconds_to_first_step(scratch: Path, workers: int) -> float:
    """Start the stage in `scratch` and read the moment that it wrote down."""
    params = YAML(typ="safe").load(ROOT / "params.yaml")
    params["cluster"]["num_workers"] = workers
    YAML().dump(params, scratch / "params.yaml")
    (scratch / "data").mkdir(exist_ok=True)
    if not (scratch / "data/prepared").exists():
        (scratch / "data/prepared").symlink_to(ROOT / "data/prepared")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = time.time()
    subprocess.run([sys.executable, __file__, "stage"], cwd=scratch, env=environment, capture_output=True, check=False)
    return float((scratch / "first-step").read_text()) - started


def stage() -> None:
    """The stage, with a progress bar that writes down when the first pictures were trained on and interrupts it."""
    from pipeline.progress import Progress

    def first_step(progress: Progress, count: int) -> None:
        Path("first-step").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGINT)

    Progress.images = first_step  # type: ignore[method-assign]
    sys.argv = ["unguided", "vit", "0"]
    runpy.run_module("stages.unguided", run_name="__main__")


if __name__ == "__main__":
    stage() if sys.argv[1:] == ["stage"] else main()

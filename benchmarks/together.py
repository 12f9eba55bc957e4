"""Seconds for four networks, stage after stage as `dvc repro` runs them, and by `stages.train_all`, as many at once as fit.

Runs the real stages in scratch folders, over the prepared data of this project (`dvc repro prepare`), with one CPU a
training. The two take turns. DVC's own second or two for each stage is not in it.

--simulate: on two busy cores nothing is gained by doing more at once, so this shows the scheduling alone: on a Ray that is
told it has so many CPUs, networks that only wait, each as a task that takes one of these.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

from pipeline import distributed, scheduling
from pipeline.config import Cluster
from pipeline.together import Task, together

ROOT = Path.cwd()
STAGES = (["teacher", "0"], ["teacher", "1"], ["unguided", "vit", "0"], ["unguided", "vit", "1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--simulate", action="store_true")
    arguments = parser.parse_args()
    if arguments.simulate:
        simulate()
        return
    ways = {"one after another": STAGES, "train_all": (["train_all"],)}
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, stages in ways.items():
            measured[name].append(seconds(stages, arguments.epochs))
    base = statistics.median(measured["one after another"])
    for name, values in measured.items():
        middle = statistics.median(values)
        span = f"from {min(values):.0f} to {max(values):.0f} s, {arguments.rounds} runs, {os.cpu_count()} CPUs"
        print(f"{name:18} median {middle:5.0f} s  ratio {middle / base:.2f}  {span}")


def simulate() -> None:
    """How long N waiting networks take on k slots, as a multiple of one."""
    import ray

    for slots in (2, 4, 8):
        ray.init(num_cpus=slots, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        for networks in (slots, slots + 1, 3 * slots):
            least = math.ceil(networks / slots)
            print(f"{networks:3} networks on {slots} slots: {waited(networks, 10):5.2f} times one; {least} are the least")
        ray.shutdown()


def waited(networks: int, wait: float) -> float:
    """The time of so many that wait so many seconds each, as a multiple of one."""
    import ray

    cluster, each = Cluster(num_workers=1), {"CPU": 1.0}
    one = ray.remote(num_cpus=1)(lambda: time.sleep(wait))
    tasks = {str(number): Task(lambda: ray.get(one.remote())) for number in range(networks)}
    started = time.perf_counter()
    together(tasks, room=lambda: scheduling.trainings_at_once(cluster, distributed.nodes_of_ray(), each))
    return (time.perf_counter() - started) / wait


def seconds(stages: tuple[list[str], ...], epochs: int) -> float:
    """The time that these stages take, one after another, where nothing has been trained yet."""
    with tempfile.TemporaryDirectory() as scratch:
        params = YAML(typ="safe").load(ROOT / "params.yaml")
        params["cluster"] |= {"num_workers": 1, "cpus_per_worker": 1}
        params["experiment"] |= {"seeds": [0, 1], "unguided": ["vit"], "guided": []}
        params["tracking"]["enabled"] = False
        for recipe in params["training"].values():
            recipe["duration"] = f"{epochs} epochs"
        YAML().dump(params, Path(scratch, "params.yaml"))
        Path(scratch, "data").mkdir()
        Path(scratch, "data/prepared").symlink_to(ROOT / "data/prepared")
        started = time.perf_counter()
        for stage in stages:
            command = [sys.executable, "-m", f"stages.{stage[0]}", *stage[1:]]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            subprocess.run(command, cwd=scratch, env=environment, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()

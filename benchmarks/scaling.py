"""Time of a training step on W workers: a model, held against 1, 2 and 4 workers here, and what it says of 8 x 8 GPUs.

python -m benchmarks.scaling            measures and predicts; docs/scaling.md tells what it assumes, and draws on it
python -m benchmarks.scaling --figure docs/scaling.svg

Here: processes of one thread each that share one global batch, gradients averaged by gloo, as Ray Train starts them. Times
are those of the processor for one worker, the shortest of many, taken in turn, because other processes change the clock's
more; on a machine with a free core for each worker the two are alike.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from benchmarks.training import example
from pipeline import models

WORKERS = (1, 2, 4)
GLOBAL_BATCH = 128


# The model


@dataclass(frozen=True)
class Machine:
    """What a step runs on."""

    start_seconds: float  # of a step, however few its pictures: launching kernels, updating weights
    seconds_per_picture: float  # forward and backward
    bandwidth: float  # bytes/s that a ring of workers passes on
    latency: float  # seconds for one message to the next worker
    pictures_per_second: float = float("inf")  # that reach one worker


def compute_seconds(machine: Machine, pictures: float, workers: int) -> float:
    """One worker's share of the global batch."""
    return machine.start_seconds + machine.seconds_per_picture * pictures / workers


def all_reduce_seconds(machine: Machine, size: float, workers: int) -> float:
    """A ring passes on 2 (W - 1) / W of the bytes in 2 (W - 1) messages (Patarasuk and Yuan 2009)."""
    return 2 * (workers - 1) * (size / workers / machine.bandwidth + machine.latency)


def step_seconds(machine: Machine, pictures: float, size: float, workers: int, *, hidden: bool = False) -> float:
    """A step on so many pictures in all, whose gradients have so many bytes; hidden: sent during the backward pass."""
    compute, sending = compute_seconds(machine, pictures, workers), all_reduce_seconds(machine, size, workers)
    backward = 2 / 3 * compute
    whole = compute + (max(0.0, sending - backward) if hidden else sending)
    return max(whole, pictures / workers / machine.pictures_per_second)


# What it is held against


def measure(rounds: int) -> tuple[dict[int, float], dict[int, dict[str, float]]]:
    """Seconds of a step in one process by its pictures, and of a step and its all-reduces by the workers."""
    alone = dict[int, list[float]]()
    together = {workers: dict[str, list[float]]() for workers in WORKERS[1:]}
    for _ in range(rounds):
        for pictures in (GLOBAL_BATCH // workers for workers in WORKERS):
            alone.setdefault(pictures, []).append(_in_processes(1, pictures)["step"])
        for workers, taken in together.items():
            for name, seconds in _in_processes(workers, GLOBAL_BATCH // workers).items():
                taken.setdefault(name, []).append(seconds)
    shortest = {workers: {name: min(each) for name, each in taken.items()} for workers, taken in together.items()}
    return {pictures: min(taken) for pictures, taken in alone.items()}, shortest


def _in_processes(workers: int, pictures: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_worker, args=(workers, pictures, folder), nprocs=workers)
        return torch.load(Path(folder, "seconds"), weights_only=True)


def _worker(rank: int, workers: int, pictures: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    network = _network()
    gradients, word = torch.zeros(_bytes(network) // 4), torch.zeros(1)
    seconds = {"step": _shortest(_step(network, pictures, workers), 8)}
    if workers > 1:
        seconds["gradients"] = _shortest(lambda: distributed.all_reduce(gradients), 10)
        seconds["word"] = _shortest(lambda: distributed.all_reduce(word), 50)
    if rank == 0:
        torch.save(seconds, Path(folder, "seconds"))
    distributed.barrier()
    distributed.destroy_process_group()


def _network() -> nn.Module:
    return models.build("vit", example(32, 128).config["model_args"]).train()


def _bytes(network: nn.Module) -> int:
    return sum(4 * weight.numel() for weight in network.parameters())


def _step(network: nn.Module, pictures: int, workers: int) -> Callable[[], Any]:
    model = DistributedDataParallel(network) if workers > 1 else network
    optimizer = torch.optim.AdamW(model.parameters())
    images, labels = torch.randn(pictures, 3, 32, 32), torch.zeros(pictures, dtype=torch.long)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def _shortest(action: Callable[[], Any], times: int) -> float:
    seconds = []
    for _ in range(times + 2):  # the first two warm up
        started = time.process_time()
        action()
        seconds.append(time.process_time() - started)
    return min(seconds[2:])


def fitted(alone: dict[int, float], together: dict[int, dict[str, float]], size: int) -> Machine:
    """The machine that these times tell of; no step of several workers is used."""
    few, many = min(alone), max(alone)
    slope = (alone[many] - alone[few]) / (many - few)
    workers, taken = next(iter(together.items()))
    latency = taken["word"] / (2 * (workers - 1))
    bandwidth = 2 * (workers - 1) / workers * size / (taken["gradients"] - taken["word"])
    return Machine(max(0.0, alone[few] - slope * few), slope, bandwidth, latency)


# What it says of GPUs

FLOPS, UTILISATION = 312e12, {"DeiT-Ti": 0.15, "ViT-S": 0.25}
WEIGHTS = {"DeiT-Ti": 5.7e6, "ViT-S": 22.1e6}
MACS = {"DeiT-Ti": 1.26e9, "ViT-S": 4.61e9}
START_SECONDS = 8e-3
NVLINK, NETWORK, REACHED = 300e9, 50e9, 0.7  # bytes/s of a GPU and of a node, one way; the share that NCCL gets of it
LATENCY = {"node": 3e-6, "network": 12e-6}
DECODED_PER_SECOND = 12 * 300  # JPEGs for each GPU: its share of the node's processors
PICTURES, BATCHES = 1_281_167, (1024, 4096)


def gpus(name: str, workers: int, *, decode: bool = False) -> Machine:
    """So many A100, eight in a node."""
    within = workers <= 8
    return Machine(
        start_seconds=START_SECONDS,
        seconds_per_picture=3 * 2 * MACS[name] / (FLOPS * UTILISATION[name]),
        bandwidth=REACHED * (NVLINK if within else NETWORK),
        latency=LATENCY["node" if within else "network"],
        pictures_per_second=DECODED_PER_SECOND if decode else float("inf"),
    )


def predicted(name: str, batch: int, workers: int, **how: bool) -> float:
    """Seconds of a step on so many GPUs."""
    hidden = how.pop("hidden", False)
    return step_seconds(gpus(name, workers, **how), batch, 4 * WEIGHTS[name], workers, hidden=hidden)


def epoch_minutes(name: str, batch: int, workers: int, **how: bool) -> float:
    return PICTURES / batch * predicted(name, batch, workers, **how) / 60


def efficiency(name: str, batch: int, workers: int, **how: bool) -> float:
    """Speed over that of one GPU, for each."""
    return predicted(name, batch, 1, **how) / predicted(name, batch, workers, **how) / workers


# What is printed and drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--figure", type=Path, help="draw what is predicted, and measure nothing")
    arguments = parser.parse_args()
    if arguments.figure:
        draw(arguments.figure)
        return
    size = _bytes(_network())
    alone, together = measure(arguments.rounds)
    machine = fitted(alone, together, size)
    print(f"{size / 1e6:.1f} MB of gradients, global batch {GLOBAL_BATCH}; {machine}\n")
    print("| workers | step, measured | compute | all-reduce, model (measured) | step, model | model/measured |")
    print("|---|---|---|---|---|---|")
    for workers in WORKERS:
        print(row(machine, size, workers, alone[GLOBAL_BATCH] if workers == 1 else together[workers]["step"], together))
    print()
    print(
        "| network, global batch | GPUs | step | all-reduce | epoch | efficiency, sent after / during backward | fed by JPEGs |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in WEIGHTS:
        for batch in BATCHES:
            for workers in (1, 8, 16, 64):
                print(prediction(name, batch, workers))


def row(machine: Machine, size: int, workers: int, measured: float, together: dict[int, dict[str, float]]) -> str:
    model = step_seconds(machine, GLOBAL_BATCH, size, workers)
    compute, sending = (
        compute_seconds(machine, GLOBAL_BATCH, workers),
        all_reduce_seconds(machine, size, workers),
    )
    sent = f" ({1000 * together[workers]['gradients']:.1f})" if workers > 1 else ""
    return (
        f"| {workers} | {1000 * measured:.0f} ms | {1000 * compute:.0f} ms | {1000 * sending:.1f} ms{sent} "
        f"| {1000 * model:.0f} ms | {model / measured:.2f} |"
    )


def prediction(name: str, batch: int, workers: int) -> str:
    sending = all_reduce_seconds(gpus(name, workers), 4 * WEIGHTS[name], workers)
    kept = " / ".join(f"{efficiency(name, batch, workers, hidden=hidden):.0%}" for hidden in (False, True))
    return (
        f"| {name}, {batch} | {workers} | {1000 * predicted(name, batch, workers):.1f} ms | {1000 * sending:.1f} ms "
        f"| {60 * epoch_minutes(name, batch, workers):.0f} s | {kept} "
        f"| {60 * epoch_minutes(name, batch, workers, decode=True):.0f} s |"
    )


def draw(path: Path) -> None:
    """Speed-up over one GPU, between gradients that are sent after and those sent during the backward pass."""
    import matplotlib as mpl
    from matplotlib import pyplot

    from pipeline.report.figures import COLOURS

    mpl.rcParams["svg.hashsalt"] = "scaling"
    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    counts = [1, 2, 4, 8, 16, 32, 64]
    cases = [(name, batch) for name in WEIGHTS for batch in BATCHES]
    for (name, batch), colour, marker in zip(cases, COLOURS, "osD^", strict=False):
        low, high = ([count * efficiency(name, batch, count, hidden=hidden) for count in counts] for hidden in (False, True))
        axes.fill_between(counts, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(counts, low, color=colour, marker=marker, markersize=4, label=f"{name}, global batch {batch}")
    axes.plot(counts, counts, color="#888888", linestyle=(0, (1, 2)), linewidth=1, label="as many times as fast as GPUs")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(mpl.ticker.ScalarFormatter())
    axes.set(xticks=counts, yticks=counts, xlabel="A100 GPUs, eight in a node", ylabel="speed over one GPU (predicted)")
    axes.grid(color="#e6e6e6")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)


if __name__ == "__main__":
    main()

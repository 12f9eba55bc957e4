"""What each network and each form of it costs: parameters, MACs, images per second, memory.

The forms of a network take turns, and the ratio to the first form is the median over the turns, so that what else the
machine does falls on all of them alike; on a CPU, seconds are of processor time for the same reason. Memory is the peak
of a training step on a GPU; on a CPU, what is kept for the backward pass.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import models, networks
from pipeline.explain import cost

SL = {"spt": True, "lsa": True}
POOLED = {"plain": {}, "SL, embedding only": SL, "SL": {**SL, "spt_pooling": True}}
FORMS: dict[str, dict[str, dict[str, Any]]] = {  # those not named here have the plain form only
    "vit": {
        "plain": {},
        "S": {"spt": True},
        "T": {"lsa": "temperature"},
        "M": {"lsa": "mask"},
        "L": {"lsa": True},
        "SL": SL,
        "MLA query": {"mla": ["query"]},
        "MLA all": {"mla": ["query", "key", "value"]},
    },
    "t2t": {"plain": {}, "SL": SL},
    "cait": {"plain": {}, "SL": SL},
    "pit": POOLED,
    "swin": POOLED,
    "deit": {"tiny": {}, "small": {"variant": "small"}},
    "resnet_cifar": {str(depth): {"depth": depth} for depth in (56, 20, 32, 44, 110)},
    "resnet": {"18": {}, "50": {"variant": "50"}, "wide-50-2": {"variant": "wide_50_2"}},
}
COLUMNS = ("network", "form", "parameters", "MACs", "forward/s", "training/s", "ratio to first form", "quartiles", "memory MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=models.NETWORKS, default=[*models.NETWORKS])
    parser.add_argument("--forms", nargs="+", help="only these, e.g. plain SL")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5, help="at least 2")
    parser.add_argument("--bfloat16", action="store_true", help="autocast, for GPUs")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}; {arguments.image_size} px, batch {arguments.batch_size}, median of {arguments.rounds} rounds\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    warnings.filterwarnings("ignore", message=".* tokens of a picture")
    for network in arguments.networks:
        for row in measure(network, arguments, device):
            print("| " + " | ".join(row) + " |", flush=True)


def measure(name: str, arguments: argparse.Namespace, device: torch.device) -> list[list[str]]:
    """One row of the table for each form of a network."""
    known = FORMS.get(name, {"plain": {}})
    chosen = [form for form in known if not arguments.forms or form in arguments.forms] or [*known][:1]
    shape = [arguments.image_size, arguments.image_size, 3]
    built = {form: _build(name, known[form], shape, arguments.classes).to(device).eval() for form in chosen}
    costs = {form: [f"{_count(network):,}", f"{cost.macs(network, shape) / 1e6:,.1f} M"] for form, network in built.items()}
    batch = _batch(arguments, device)
    steps = {form: _step(network, batch, arguments.bfloat16, arguments.compile) for form, network in built.items()}
    memory = {form: f"{_memory(step, device) / 2**20:,.0f}" for form, step in steps.items()}
    training = _in_turn(steps, arguments.rounds, device)
    forward = _in_turn(
        {form: _forward(network, batch[0], arguments.bfloat16) for form, network in built.items()}, arguments.rounds, device
    )
    rates = {form: [_rate(arguments, times[form]) for times in (forward, training)] for form in chosen}
    return [
        [name, form, *costs[form], *rates[form], *_ratio(training[chosen[0]], training[form]), memory[form]] for form in chosen
    ]


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _rate(arguments: argparse.Namespace, times: list[float]) -> str:
    """Images per second."""
    return f"{arguments.batch_size / statistics.median(times):,.0f}"


def _ratio(first: list[float], times: list[float]) -> tuple[str, str]:
    """How fast, over the first form: the median over the rounds, and its quartiles."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(first, times, strict=True)], n=4)
    return f"{middle:.3f}", f"{low:.3f} to {high:.3f}"


def _build(name: str, settings: dict[str, Any], shape: Sequence[int], classes: int) -> nn.Module:
    network = networks.models()[name](model=name, **settings)
    return models.build(name, models.arguments(network, image_shape=shape, classes=classes))


def _batch(arguments: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor]:
    side = arguments.image_size
    images = torch.randn(arguments.batch_size, 3, side, side, device=device)
    return images, torch.randint(arguments.classes, (arguments.batch_size,), device=device)


def _step(network: nn.Module, batch: tuple[Tensor, Tensor], bfloat16: bool, compiled: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    called = torch.compile(network) if compiled else network

    def step() -> None:
        network.train()
        with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=bfloat16):
            logits = called(batch[0])
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), batch[1]).backward()
        optimizer.step()

    return step


def _forward(network: nn.Module, images: Tensor, bfloat16: bool) -> Callable[[], None]:
    def forward() -> None:
        network.eval()
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
            network(images)

    return forward


def _in_turn(calls: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call in each round, the first round left out; the order turns round from one to the next."""
    times: dict[str, list[float]] = {form: [] for form in calls}
    for turn in range(rounds + 1):
        for form in [*calls] if turn % 2 else [*reversed(calls)]:
            started = _seconds(device)
            calls[form]()
            if turn:
                times[form].append(_seconds(device) - started)
    return times


def _seconds(device: torch.device) -> float:
    """Of the clock on a GPU, once it has finished; of all processors' time on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _memory(step: Callable[[], None], device: torch.device) -> int:
    """Bytes: the peak of a step on a GPU; on a CPU the tensors that autograd keeps, each storage once."""
    if device.type == "cuda":
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(kept.values())


if __name__ == "__main__":
    main()

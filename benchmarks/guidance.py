"""What guidance costs: a training step with it, by stored maps, and after it has ended, over the same step unguided.

The steps take turns, and each ratio is the median over the turns; on a CPU, seconds are of processor time. Beside it
stands the least that guidance must cost by its arithmetic: the teacher's forward pass, over the student's three. The last
column is what the likeness to the teacher (CKA), measured once an epoch, adds to an epoch of 45,000 pictures.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import repeat
from pathlib import Path

import numpy as np
import torch

from pipeline import config, distributed, models
from pipeline.config import Guidance, Network, Training
from pipeline.data.features import Features
from pipeline.data.loading import Pictures, open_source
from pipeline.explain import cost
from pipeline.networks import Deit, Resnet, Vit
from pipeline.training import engine, likeness, loop
from pipeline.training.checkpoint import Model, model_config
from pipeline.training.guidance import Teacher

STUDENTS: dict[str, tuple[Network, int]] = {  # and the size of their pictures, pixels; the teacher sees 32 px
    "DeiT-Ti, 224 px": (Deit(model="deit", patch_size=16), 224),
    "ViT, 64 px": (Vit(model="vit"), 64),
    "ViT, 32 px": (Vit(model="vit"), 32),
}
TEACHER = Resnet(model="resnet_cifar", depth=56)
PICTURES = 45_000  # of a training split: CIFAR's, less a tenth for validation
CONSTANT = Guidance(beta=2.5, schedule="constant")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    columns = [
        "student",
        "unguided, images/s",
        "guided, ratio of time",
        "offline",
        "after its end",
        "by arithmetic",
        "likeness, % of an epoch",
    ]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name, (network, size) in STUDENTS.items():
        print(f"| {name} | {row(network, size, arguments, device)} |", flush=True)


def row(network: Network, size: int, arguments: argparse.Namespace, device: torch.device) -> str:
    """The figures of one student."""
    teacher = job(TEACHER, 32, arguments.batch_size)
    model = Model(teacher.config, models.build("resnet_cifar", teacher.config["model_args"]).state_dict())
    alone = job(network, size, arguments.batch_size)
    guided = dataclasses.replace(alone, guidance=CONSTANT, teacher=model)
    offline = dataclasses.replace(guided, features=features(model, arguments.batch_size))
    steps = {
        "unguided": step(alone, device, guides=False),
        "guided": step(guided, device, guides=True),
        "offline": step(offline, device, guides=True),
        "ended": step(guided, device, guides=False),
        "likeness": look(guided, device),
    }
    times = in_turn(steps, arguments.rounds, device)
    *ratios, looked = (
        statistics.median(a / b for a, b in zip(times[key], times["unguided"], strict=True)) for key in list(steps)[1:]
    )
    student_macs = cost.macs(models.build(network.model, alone.config["model_args"]).eval(), [size, size, 3])
    share = cost.macs(model.network(), [32, 32, 3]) / (3 * student_macs)
    rate, looking = arguments.batch_size / statistics.median(times["unguided"]), 100 * looked * likeness.PICTURES / PICTURES
    return " | ".join([f"{rate:.0f}", *(f"{ratio:.3f}" for ratio in ratios), f"{1 + share:.3f}", f"{looking:.2f}"])


def job(network: Network, size: int, batch_size: int) -> loop.Job:
    """One batch of noise."""
    rng = np.random.default_rng(0)
    pictures = Pictures(rng.integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8), rng.integers(0, 100, batch_size))
    card = {"image_shape": [size, size, 3], "classes": [*map(str, range(100))], "mean": [0.5] * 3, "std": [0.25] * 3}
    (recipes,) = config.load("training", path=Path("params.yaml"))
    recipe: Training = recipes.student.model_copy(
        update={"batch_size": batch_size, "duration": "1 epoch", "warmup": "0 epochs"}
    )
    arguments = models.arguments(network, image_shape=card["image_shape"], classes=100)
    return loop.Job(model_config(network.model, arguments, card, {}), recipe, 0, pictures, pictures)


def features(teacher: Model, pictures: int) -> Features:
    """Maps of noise, of the teacher's shapes."""
    network = Teacher(teacher.network(), teacher.image_shape[:2])
    maps = network(torch.randn(pictures, 3, *teacher.image_shape[:2]))[1]
    return Features((), tuple(each.half().numpy() for each in maps))


def step(made: loop.Job, device: torch.device, *, guides: bool) -> Callable[[], None]:
    """An epoch of one step, as the loop does it."""
    keeper = distributed.Keeper("unused", interval="999999 hours")
    reporter = distributed.LocalReporter(keeper, device, distributed.Listener())
    source = open_source(made.train, device)
    state = loop._fresh(made, device, source)
    objective = loop._objective(made, state, reporter, loop.Lessons(maps=guides, answers=False))
    batch = list(loop._batches(made, source, reporter, epoch=0))

    def run() -> None:
        beta = (lambda _: 2.5) if guides else (lambda _: 0.0)
        rate = {"first_step": 0, "learning_rate": lambda _: 1e-3, "seed": 0}
        stored = loop._stored(made, made.features, reporter, epoch=0) if guides and made.features else repeat(())
        engine.train_epoch(objective, batch, loop._update(made, state), beta=beta, stored=stored, **rate)

    return run


def look(made: loop.Job, device: torch.device) -> Callable[[], object]:
    """The measurement of likeness after an epoch, on the pictures of one step."""
    keeper = distributed.Keeper("unused", interval="999999 hours")
    reporter = distributed.LocalReporter(keeper, device, distributed.Listener())
    source = open_source(made.train, device)
    state = loop._fresh(made, device, source)
    alike = loop._likeness(made, state, [source, source], reporter)
    assert alike
    return lambda: alike.of(state.network)


def in_turn(steps: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each step in each round; one round before them warms up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, run in steps.items():
            started = _now(device)
            run()
            if turn:
                times[name].append(_now(device) - started)
    return times


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()

"""Training pictures per second: our loop in this process and on Ray, over a bare PyTorch loop of the same steps.

The bare loop has the same network, batches and optimizer, and nothing else. The three take turns, and each epoch counts
once; the first one of every run warms up and is left out.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional as F

from pipeline import distributed, models
from pipeline.config import Augmentation, Cluster, Training, Vit
from pipeline.data import batches, loading
from pipeline.data.augment.colours import Colours
from pipeline.training import optim
from pipeline.training.checkpoint import model_config
from pipeline.training.engine import Pixels
from pipeline.training.loop import Job, Pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=32, help="pixels")
    parser.add_argument("--pictures", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    job = example(arguments.image_size, arguments.pictures)
    ways = {"bare PyTorch": bare, "in this process": in_process, "Ray, one worker": on_ray}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            rates[name] += way(job)
    base = statistics.median(rates["bare PyTorch"])
    for name, values in rates.items():
        middle = statistics.median(values)
        print(
            f"{name:16} median {middle:7.0f} images/s  ratio {middle / base:.3f}  from {min(values):.0f} to {max(values):.0f}"
        )


def example(size: int, count: int) -> Job:
    """A small ViT on noise: what is in the pictures makes no difference to the time."""
    rng = np.random.default_rng(0)
    card = {"image_shape": [size, size, 3], "classes": [str(c) for c in range(10)], "mean": [0.5] * 3, "std": [0.25] * 3}
    network = Vit(model="vit", patch_size=8, width=192, depth=6, heads=6)
    pictures = Pictures(rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8), rng.integers(0, 10, count))
    few = Pictures(pictures.pixels[:64], pictures.labels[:64])
    arguments = models.arguments(network, image_shape=card["image_shape"], classes=10)
    return Job(model_config("vit", arguments, card, {}), recipe(), 0, pictures, few)


def recipe() -> Training:
    return Training(
        duration="5 epochs",
        batch_size=128,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.05,
        warmup="1 epoch",
        label_smoothing=0.1,
        precision="float32",
        augmentation=Augmentation(crop_padding=4),
    )


def bare(job: Job) -> list[float]:
    """Images per second of each epoch but the first, by nothing but PyTorch."""
    torch.manual_seed(0)
    network = models.build("vit", job.config["model_args"]).train()
    optimizer = optim.build([network], job.training)
    to_input = Pixels.of([0.5] * 3, [0.25] * 3, torch.device("cpu"))
    rates = []
    for epoch in range(job.timetable.epochs):
        started, images = time.perf_counter(), 0
        for pictures, labels in _batches(job, epoch):
            loss = F.cross_entropy(network(to_input(pictures)), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            images += len(labels)
        rates.append(images / (time.perf_counter() - started))
    return rates[1:]


def _batches(job: Job, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    source, colours = loading.open_source(job.train, torch.device("cpu")), Colours.of([0.5] * 3, [0.25] * 3)
    return batches.training(source, job.training, colours, side=job.image_shape[0], classes=10, seed=0, epoch=epoch)


def in_process(job: Job) -> list[float]:
    return _fit(job, workers=0)


def on_ray(job: Job) -> list[float]:
    return _fit(job, workers=1)


def _fit(job: Job, *, workers: int) -> list[float]:
    with tempfile.TemporaryDirectory() as scratch:
        cluster = Cluster(num_workers=workers, cpus_per_worker=torch.get_num_threads(), use_gpu=False, scratch=scratch)
        trained = distributed.fit(job, cluster, identity="benchmark", listener=distributed.Listener())
    return [row["images_per_second"] for row in trained.history[1:]]


if __name__ == "__main__":
    main()

"""Small jobs and settings that many tests share."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from pipeline import config, models
from pipeline.config import Augmentation, Cluster, Resnet, Training, Vit
from pipeline.training.checkpoint import Model, model_config
from pipeline.training.loop import Job, Pictures

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job, and all it starts, would ignore
settings.register_profile("laws", deadline=None)  # a law holds on a busy machine too
settings.load_profile("laws")

CLASSES = ["cat", "dog", "emu"]
CARD = {"image_shape": [8, 8, 3], "classes": CLASSES, "mean": [0.5] * 3, "std": [0.25] * 3, "fingerprint": "f"}
SL_VIT = Vit(model="vit", patch_size=2, width=16, depth=3, heads=2, spt=True, lsa=True, dropout=0.1, drop_path=0.1)
RESNET = Resnet(model="resnet_cifar", depth=8, width=4)


def recipe(**changes: Any) -> Training:
    """Three epochs of a small AdamW training."""
    plain = {
        "duration": "3 epochs",
        "batch_size": 16,
        "optimizer": "adamw",
        "learning_rate": 3e-3,
        "weight_decay": 0.05,
        "warmup": "1 epoch",
        "label_smoothing": 0.1,
        "precision": "float32",
        "augmentation": Augmentation(crop_padding=1, horizontal_flip=True, erase_probability=0.25),
    }
    return Training(**{**plain, **changes})


def pictures(count: int, seed: int) -> Pictures:
    """Noise around one mean colour per class: learnable, and different in every pixel."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    pixels = rng.integers(0, 150, (count, 8, 8, 3)) + 90 * np.eye(3, dtype=np.int64)[labels][:, None, None]
    return Pictures(pixels.astype(np.uint8), labels.astype(np.int64))


def job(network: Vit | Resnet = SL_VIT, training: Training | None = None, **changes: Any) -> Job:
    """A training of 70 pictures, which no batch size here divides."""
    arguments = models.arguments(network, image_shape=CARD["image_shape"], classes=len(CLASSES))
    parts = {"seed": 0, "train": pictures(70, seed=1), "validation": pictures(31, seed=2), **changes}
    return Job(config=model_config(network.model, arguments, CARD, {}), training=training or recipe(), **parts)


def teacher() -> Model:
    """An untrained teacher with BatchNorm statistics that are not the initial ones."""
    torch.manual_seed(7)
    made = job(RESNET)
    network = models.build("resnet_cifar", made.config["model_args"])
    network.train()(torch.randn(32, 3, 8, 8))
    return Model(made.config, network.state_dict())


def cluster(**changes: Any) -> Cluster:
    """In this process, unless told otherwise."""
    return Cluster(**{"num_workers": 0, "use_gpu": False, "checkpoint_interval": "0 seconds", **changes})


def numbers(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history without what the clock and the machine say."""
    return [
        {key: value for key, value in row.items() if key not in ("train_seconds", "images_per_second", "hardware", "data")}
        for row in history
    ]


@pytest.fixture
def params() -> dict[str, Any]:
    """The committed params.yaml as a plain tree, to be changed by a test."""
    return config._read(Path("params.yaml"))

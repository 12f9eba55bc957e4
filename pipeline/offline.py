"""Guidance without a teacher that runs: its maps of the training pictures as they are, made once."""

from pathlib import Path
from typing import Any

import torch

from pipeline.config import Guidance, Training
from pipeline.data import batches, features, loading
from pipeline.data.features import Features
from pipeline.runs import Data
from pipeline.training import engine
from pipeline.training.checkpoint import Model
from pipeline.training.guidance import Teacher

PICTURES_AT_ONCE = 128


def store(folder: Path, data: Data, teacher: Model, guidance: Guidance, recipe: Training, device: torch.device) -> None:
    """Write the teacher's maps of all training pictures, at the size at which the student's recipe shows them."""
    about = _about(data, teacher, guidance, recipe)
    network = Teacher(teacher.network(), teacher.image_shape[:2], guidance.teacher_layers).to(device)
    pixels = engine.Pixels.of(data.card["mean"], data.card["std"], device)
    source = loading.open_source(data.train, device, residence="streaming")
    shown = batches.evaluation(source, side=about["image_size"], batch_size=PICTURES_AT_ONCE)
    maps = (network(pixels(images))[1] for images, _ in shown)
    features.store(folder, maps, pictures=len(data.train.labels), about=about)


def load(folder: Path, data: Data, teacher: Model, guidance: Guidance, recipe: Training) -> Features:
    """What `store` wrote of the same. Raises UserError where it is missing, damaged or of something else."""
    return features.load(folder, about=_about(data, teacher, guidance, recipe))


def _about(data: Data, teacher: Model, guidance: Guidance, recipe: Training) -> dict[str, Any]:
    """What the maps depend on."""
    return {
        "teacher": teacher.digest,
        "teacher_layers": guidance.teacher_layers,
        "image_size": batches.image_shape(data.card, recipe)[0],
        "data_fingerprint": data.card["fingerprint"],
    }

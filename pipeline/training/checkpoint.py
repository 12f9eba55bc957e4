"""Everything needed to continue a training, and the model folder that others can load. Nothing is unpickled."""

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from pipeline import files, models
from pipeline.config import UserError

WEIGHTS = "model.safetensors"


@dataclass
class State:
    """A training at the end of an epoch. Random states are not here: every step derives its own."""

    network: nn.Module
    projections: nn.Module
    optimizer: Optimizer
    scaler: GradScaler
    ema: AveragedModel | None = None  # of the network's weights
    best: dict[str, Tensor] = field(default_factory=dict)  # the weights of the best epoch, where they are wanted
    history: list[dict[str, Any]] = field(default_factory=list)  # one row per finished epoch

    def to_bytes(self) -> bytes:
        """The whole state, as a file that `restore` reads."""
        buffer = io.BytesIO()
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        torch.save({**parts, "best": self.best, "history": self.history}, buffer)
        return buffer.getvalue()

    def _parts(self) -> dict[str, Any]:
        parts = {
            "network": self.network,
            "projections": self.projections,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
        }
        return parts if self.ema is None else {**parts, "ema": self.ema}

    def weights(self, result: str = "last") -> dict[str, Tensor]:
        """The weights that a recipe calls its result, on the CPU."""
        if "best" in result:
            return self.best
        network = self.ema.module if result == "ema" and self.ema else self.network
        return {name: weight.detach().cpu().clone().contiguous() for name, weight in network.state_dict().items()}

    def restore(self, content: bytes) -> None:
        """Continue from what `to_bytes` gave. Raises Damaged where the content is not that."""
        try:
            saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            for name, part in self._parts().items():
                part.load_state_dict(saved[name])
            self.best, self.history = dict(saved["best"]), list(saved["history"])
        except Exception as error:  # torch raises whatever its unpickler and its archive reader raise
            raise Damaged(f"{type(error).__name__}: {error}") from error


class Damaged(Exception):
    """A checkpoint that cannot be continued from."""


@dataclass(frozen=True)
class Model:
    """A network as plain values and weights: what travels to workers and lies in a model folder.

    config: architecture, arguments, classes, preprocessing and provenance, in timm's form.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]

    @property
    def name(self) -> str:
        return self.config["architecture"].removeprefix("espalier_")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the pictures it was trained on."""
        channels, height, width = self.config["pretrained_cfg"]["input_size"]
        return height, width, channels

    @property
    def digest(self) -> str:
        """16 hexadecimal digits over the weights."""
        return hashlib.sha256(self.to_safetensors()).hexdigest()[:16]

    def to_safetensors(self) -> bytes:
        """The weights as a file."""
        return safetensors.torch.save({name: weight.contiguous() for name, weight in self.weights.items()})

    def network(self) -> nn.Module:
        """The network with its weights, in eval mode."""
        network = models.build(self.name, self.config["model_args"])
        network.load_state_dict(self.weights)
        return network.eval()


def model_config(name: str, arguments: dict[str, Any], card: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
    """The config.json that timm's `local-dir:` reads, with what we add for ourselves under "espalier"."""
    height, width, channels = card["image_shape"]
    return {
        "architecture": f"espalier_{name}",
        "num_classes": len(card["classes"]),
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [channels, height, width],
            "mean": card["mean"],
            "std": card["std"],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "num_classes": len(card["classes"]),
            "label_names": card["classes"],
            "classifier": models.classifiers(name, arguments),
        },
        "espalier": provenance,
    }


def save_model(folder: Path, model: Model) -> None:
    """Write a model folder, whole or not at all."""
    with files.replacing(folder) as aside:
        aside.mkdir()
        (aside / WEIGHTS).write_bytes(model.to_safetensors())
        files.write_json(aside / "config.json", model.config)


def load_model(folder: Path, *, made_by: str) -> Model:
    """Read a model folder. Raises UserError, naming the stage that makes it, where it is missing or damaged."""
    try:
        config = files.read_json(folder / "config.json", missing=FileNotFoundError)
        return Model(config, safetensors.torch.load_file(folder / WEIGHTS))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no trained network; `dvc repro {made_by}` makes it") from None
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{folder} is damaged ({error}); `dvc repro {made_by}` makes it anew") from None

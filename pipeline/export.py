"""A trained network in forms that others run: an MLflow model for pictures, a torch program for pixels."""

import io
import os
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from pipeline import files
from pipeline.prediction import Predictor
from pipeline.tracking import ENVIRONMENT
from pipeline.training.checkpoint import load_model

PACKAGE = Path(__file__).parent
NEEDED = (
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pyarrow",
    "pydantic",
    "ruamel.yaml",
    "safetensors",
    "timm",
    "torch",
    "torchvision",
)


class Program(nn.Module):
    """Pixels (B, side, side, C) uint8 to probabilities (B, K): the preprocessing is inside."""

    mean: Tensor
    std: Tensor

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.network = predictor.network
        self.register_buffer("mean", predictor.normalised.mean)
        self.register_buffer("std", predictor.normalised.std)

    def forward(self, pixels: Tensor) -> Tensor:
        images = ((pixels.float() - self.mean) / self.std).permute(0, 3, 1, 2)
        return self.network(images).softmax(1)


def to_torch(model: Path, out: Path) -> None:
    """A file that `torch.export.load` reads without our code, for any number of pictures at once."""
    predictor = Predictor(load_model(model, made_by="report"), torch.device("cpu"))
    example = torch.zeros(2, predictor.side, predictor.side, predictor.channels, dtype=torch.uint8)
    batch = {0: torch.export.Dim("batch", min=1)}
    with torch.no_grad():
        program = torch.export.export(Program(predictor).eval(), (example,), dynamic_shapes=(batch,))
    with files.replacing(out) as aside:
        named = aside.with_name(f"{aside.name}.pt2")  # torch warns of any other ending
        torch.export.save(program, named, extra_files={"classes.txt": "\n".join(predictor.classes)})
        named.replace(aside)


def to_mlflow(model: Path, out: Path) -> None:
    """A folder for `mlflow models serve` and `predict`: pictures as the bytes of their files, out come probabilities.

    It holds our code and the model folder, and loads them by `pipeline/served.py`; nothing is pickled.
    """
    side, _, channels = load_model(model, made_by="report").image_shape
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    with files.replacing(out) as aside:
        pyfunc.save_model(
            path=str(aside),
            python_model=str(PACKAGE / "served.py"),
            artifacts={"model": str(model)},
            code_paths=[str(PACKAGE)],
            signature=ModelSignature(inputs=Schema([ColSpec("binary", "picture")])),
            input_example=pd.DataFrame({"picture": [_grey(side, channels)]}),
            pip_requirements=[f"{name}=={version(name)}" for name in NEEDED],
        )


def _grey(side: int, channels: int) -> bytes:
    content = io.BytesIO()
    Image.new("L" if channels == 1 else "RGB", (side, side), "grey").save(content, "PNG")
    return content.getvalue()


FORMATS = {"mlflow": to_mlflow, "torch": to_torch}

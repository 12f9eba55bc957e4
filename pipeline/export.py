"""A trained network in forms that others run: an MLflow model for pictures, a torch or an ONNX program for pixels."""

import io
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import ExportedProgram

from pipeline import files
from pipeline.config import UserError
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
MOST_DIFFERENCE = 1e-4  # of a probability by ONNX Runtime


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
    predictor = _predictor(model)
    program = _program(predictor)
    with files.replacing(out) as aside:
        named = aside.with_name(f"{aside.name}.pt2")  # torch warns of any other ending
        torch.export.save(program, named, extra_files={"classes.txt": "\n".join(predictor.classes)})
        named.replace(aside)


def to_onnx(model: Path, out: Path) -> None:
    """A file for ONNX Runtime and its like: "pixels" in, "probabilities" out, the classes in its metadata.

    Raises UserError where ONNX Runtime does not answer as the network does.
    """
    predictor = _predictor(model)
    program = _program(predictor).run_decompositions({torch.ops.aten.avg_pool2d.default: _means})
    made = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=["pixels"],
        output_names=["probabilities"],
        dynamic_shapes=({0: "batch"},),
    )
    assert made is not None
    made.model.metadata_props["classes"] = "\n".join(predictor.classes)
    with files.replacing(out) as aside:
        made.save(aside)
        _refuse_other_answers(aside, predictor)


def _means(maps: Tensor, size: Sequence[int], stride: Sequence[int] = ()) -> Tensor:
    """Average pooling without its operator, which ONNX Runtime lacks in float64, where SPT has it."""
    rows, columns = size
    return maps.unflatten(3, (-1, columns)).unflatten(2, (-1, rows)).mean((3, 5))


def _refuse_other_answers(file: Path, predictor: Predictor) -> None:
    import onnxruntime

    pixels = np.random.default_rng(0).integers(0, 256, (3, *predictor.shape)).astype(np.uint8)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(["probabilities"], {"pixels": pixels})
    difference = float(np.abs(found - predictor.probabilities(pixels)).max())
    if not difference <= MOST_DIFFERENCE:
        raise UserError(
            f"ONNX Runtime's probabilities differ from the network's by {difference:.2g}, more than {MOST_DIFFERENCE:g}; "
            f"the format torch keeps them"
        )


def _predictor(model: Path) -> Predictor:
    return Predictor(load_model(model, made_by="report"), torch.device("cpu"))


def _program(predictor: Predictor) -> ExportedProgram:
    example = torch.zeros(2, *predictor.shape, dtype=torch.uint8)
    batch = {0: torch.export.Dim("batch", min=1)}
    with torch.no_grad():
        return torch.export.export(Program(predictor).eval(), (example,), dynamic_shapes=(batch,))


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


FORMATS = {"mlflow": to_mlflow, "onnx": to_onnx, "torch": to_torch}

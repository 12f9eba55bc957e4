"""What MLflow runs when it loads a network that `pipeline.export` wrote; nothing else imports this."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from pipeline.prediction import Predictor
from pipeline.training.checkpoint import load_model


class Served(PythonModel):
    """Pictures in, a column of probabilities per class out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network."""
        self.predictor = Predictor(load_model(Path(context.artifacts["model"]), made_by="report"), torch.device("cpu"))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row per row of the column "picture", the bytes of picture files."""
        pixels = np.stack([self.predictor.pixels(content) for content in model_input["picture"]])
        return pd.DataFrame(self.predictor.probabilities(pixels), columns=self.predictor.classes)


set_model(Served())

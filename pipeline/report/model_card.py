"""The model card: what a person should know before they use a trained network, in Markdown."""

from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader

from pipeline import metrics
from pipeline.report.tables import weights


def render(config: dict[str, Any], folder: Path, scores: dict[str, float], confusion: np.ndarray) -> str:
    """The card of the network whose config.json is `config`, from its test scores and confusion (K, K)."""
    preprocessing = config["pretrained_cfg"]
    channels, height, width = preprocessing["input_size"]
    rows = metrics.per_class(confusion, [_cell(name) for name in preprocessing["label_names"]])
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True)
    return environment.get_template("model_card.md").render(
        about=config["espalier"],
        folder=folder,
        classes=[row["class"] for row in rows],
        channels=channels,
        height=height,
        width=width,
        mean=preprocessing["mean"],
        std=preprocessing["std"],
        pictures=int(confusion.sum()),
        weights=weights(config),
        scores=scores,
        rows=rows,
        weakest=min((row for row in rows if row["recall"] is not None), key=lambda row: row["recall"], default=None),
        percent=lambda value: f"{100 * value:.1f}",
        share=lambda value: "-" if value is None else f"{value:.3f}",
    )


def _cell(name: str) -> str:
    """A class name that breaks no table."""
    return name.replace("|", "\\|").replace("\n", " ")

"""All evaluations of the experiment -> one HTML page, the tables behind it and the curves that DVC plots."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import config, files, tracking
from pipeline.config import Experiment, UserError
from pipeline.data import loading, prepared
from pipeline.metrics import Answers
from pipeline.report import augmentation, page, tables
from pipeline.report.tables import Result
from stages import common


def main() -> None:
    experiment, recipe, track = config.load("experiment", "training.student", "tracking")
    card = prepared.read_card(common.PREPARED)
    results = [
        _result(kind, name, seed, card["classes"]) for kind, name in tables.networks(experiment) for seed in experiment.seeds
    ]

    rows = tables.comparison(results)
    files.write_csv(common.REPORT / "table.csv", rows)
    files.write_csv(common.REPORT / "curves.csv", tables.curves(results))
    files.write_csv(common.REPORT / "confusion.csv", tables.confusions(results, card["classes"]))
    files.write_csv(common.REPORT / "classes.csv", tables.per_class(results, card["classes"]))
    files.write_csv(common.REPORT / "corrupted.csv", tables.corrupted(results))
    files.write_csv(common.REPORT / "pairs.csv", page.pairs(results))
    files.write(common.REPORT / "table.md", page.markdown(results))
    pictures = loading.pictures(common.PREPARED / "train.arrow", channels=card["channels"])
    source = loading.open_source(pictures, torch.device("cpu"))
    sheet = augmentation.sheet(source, card, recipe, seed=experiment.seeds[0])
    files.write(common.REPORT / "index.html", _page(results, card, sheet, experiment))

    tracking.mark(track, [result.config["espalier"]["identity"] for result in results], tag="in_report")
    tracking.register(track, tables.best(results).config["espalier"]["identity"], alias="best")
    for row in rows:
        spread = "one seed" if row["test_accuracy_spread"] is None else f"± {row['test_accuracy_spread']:.4f}"
        print(f"{row['network']:28} test accuracy {row['test_accuracy']:.4f} ({spread})")
    print(f"see {common.REPORT / 'index.html'}")


def _page(results: list[Result], card: dict[str, Any], sheet: Any, experiment: Experiment) -> str:
    search = _text(common.SEARCH / "section.html")
    return page.render(results, card, sheet, search, experiment.published)


def _result(kind: str, name: str, seed: int, classes: list[str]) -> Result:
    folder = common.place(common.RESULTS, kind, name, seed)
    answers = _answers(_rows(folder / "predictions.csv"), classes)
    return Result(
        kind=kind,
        name=name,
        seed=seed,
        training=_json(folder / "training.json"),
        test=_json(folder / "test.json"),
        curve=[{key: float(value) for key, value in row.items()} for row in _rows(folder / "curve.csv")],
        confusion=answers.confusion(len(classes)),
        config=_json(common.place(common.MODELS, kind, name, seed) / "config.json"),
        answers=answers,
        insight=_arrays(folder / "insight.npz"),
        corrupted=[{**row, "accuracy": float(row["accuracy"])} for row in _rows(folder / "corrupted.csv")],
    )


def _answers(rows: list[dict[str, str]], classes: list[str]) -> Answers:
    number = {name: index for index, name in enumerate(classes)}
    actual, predicted = (np.array([number[row[key]] for row in rows]) for key in ("actual", "predicted"))
    return Answers(actual, predicted, np.array([float(row["confidence"]) for row in rows]))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        raise _missing(path) from None


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except FileNotFoundError:
        raise _missing(path) from None


def _json(path: Path) -> dict[str, Any]:
    return files.read_json(path, missing=lambda: _missing(path))


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise _missing(path) from None


def _missing(path: Path) -> UserError:
    return UserError(f"{path} is missing; `dvc repro` makes it")


if __name__ == "__main__":
    common.run(main)

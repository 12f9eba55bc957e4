"""What a search has found, for people: a line per trial, figures, and the table of settings and results."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from pipeline.report import figures
from pipeline.report.figures import Figure, Scale
from pipeline.search.candidates import importances
from pipeline.search.trials import OBJECTIVE, Trial, best_first
from pipeline.space import Domain, Search

MOST_CURVES = 12


def line(trial: Trial, search: Search) -> str:
    """One trial in one line."""
    point = ", ".join(f"{name} {value}" for name, value in zip(short(list(trial.point)), trial.point.values(), strict=True))
    if not trial.succeeded:
        return f"trial {trial.number} failed: {trial.failure} ({point})"
    last = trial.history[-1]
    how = f"{trial.status} after epoch {last['epoch']}/{trial.epochs}"
    return f"trial {trial.number} {how}: {search.objective} {last[OBJECTIVE]:.4f} ({point}, seed {trial.seed})"


def short(names: Sequence[str]) -> list[str]:
    """The dotted names without what they do not need to be told apart."""
    lasts = [name.rsplit(".", 1)[-1] for name in names]
    return [last if lasts.count(last) == 1 else name for name, last in zip(names, lasts, strict=True)]


def importance(trials: Sequence[Trial], search: Search) -> Figure:
    """The settings by how much of the objective's variance they explain."""
    found, epoch = importances(trials, search)
    count = sum(trial.succeeded for trial in trials)
    if not found:
        return figures.message(f"{count} trials are too few, or too alike, to tell which setting matters")
    labels = dict(zip(search.space, short(list(search.space)), strict=True))
    title = f"share of the variance of {search.objective} after epoch {epoch} over {count} trials (fANOVA)"
    return figures.bars({labels[name]: share for name, share in found.items()}, x=title)


def parallel(trials: Sequence[Trial], search: Search) -> Figure:
    """One line per trial through its settings to its objective."""
    shown = [trial for trial in trials if trial.succeeded]
    if not shown:
        return figures.message("no trial succeeded")
    names = short(list(search.space))
    values = [[trial.point[name] for trial in shown] for name in search.space]
    scales = [_scale(*each) for each in zip(names, search.space.values(), values, strict=True)]
    scores = [trial.history[-1][OBJECTIVE] for trial in shown]
    scales.append(_range(search.objective, min(scores), max(scores), scores))
    merits = [trial.score(search) for trial in shown]
    return figures.parallel_coordinates(scales, merits, early=[trial.status == "stopped" for trial in shown])


def _scale(label: str, domain: Domain, values: Sequence[Any]) -> Scale:
    if domain.is_range:
        low, high = domain.values
        return _range(label, low, high, values, log=domain.kind == "loguniform")
    places = [(index + 0.5) / len(domain.values) for index in range(len(domain.values))]
    ticks = dict(zip(map(str, domain.values), places, strict=True))
    apart = [0.05 * (index / max(len(values) - 1, 1) - 0.5) for index in range(len(values))]
    return Scale(label, ticks, [places[domain.values.index(value)] + own for value, own in zip(values, apart, strict=True)])


def _range(label: str, low: float, high: float, values: Sequence[float], *, log: bool = False) -> Scale:
    def place(value: float) -> float:
        if low == high:
            return 0.5
        return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)

    thirds = [low * (high / low) ** (i / 3) if log else low + (high - low) * i / 3 for i in range(4)]
    return Scale(label, {f"{tick:.3g}": place(tick) for tick in thirds}, [place(value) for value in values])


def section(trials: Sequence[Trial], search: Search, best: dict[str, Any]) -> str:
    """The part of the report page: the table in the form of Hu, Sun and Zhang, the figures and the curves."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    return environment.get_template("search.html").render(
        search=search,
        best=best,
        label=search.student if search.guidance is None else f"{search.student} under the guidance {search.guidance}",
        names=short(list(search.space)),
        several=len({trial.seed for trial in trials}) > 1,
        rows=[_row(trial) for trial in trials],
        parallel=Markup(figures.svg(parallel(trials, search))),
        importance=Markup(figures.svg(importance(trials, search))),
        accuracies=Markup(figures.svg(curves(trials, search, "val_accuracy", "validation accuracy"))),
        losses=Markup(figures.svg(curves(trials, search, "val_loss", "validation loss (nats)"))),
    )


def curves(trials: Sequence[Trial], search: Search, key: str, label: str) -> Figure:
    """One line per trial over its epochs; of many trials, those that came furthest."""
    shown = [trial for group in best_first(trials, search) for trial in group][:MOST_CURVES]
    named = {f"trial {trial.number}": [[(row["epoch"], row[key]) for row in trial.history]] for trial in shown}
    return figures.learning_curves(named, x="epoch", y=label, log=key == "val_loss")


def _row(trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "seed": trial.seed,
        "status": trial.status,
        "point": list(trial.point.values()),
        "last": trial.history[-1] if trial.succeeded else None,
        "seconds": median(row["train_seconds"] for row in trial.history) if trial.history else None,
        "failure": trial.failure,
    }

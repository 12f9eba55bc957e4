"""The trials of a search: what each has come to, kept in files, and which candidate is best. Pure, but for the files."""

import json
import math
import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from pipeline import files
from pipeline.metrics import mean_and_spread
from pipeline.space import Search

OBJECTIVE = "objective"  # in a row: the search's objective of the weights that a training would keep if it ended there
FACTS = (OBJECTIVE, "train_loss", "train_accuracy", "val_loss", "val_accuracy")


@dataclass
class Trial:
    """One candidate, trained with one seed."""

    number: int
    point: dict[str, Any]  # a setting by its dotted name -> its value
    seed: int
    identity: str = ""  # of its run; a candidate whose settings contradict each other has none
    status: str = "running"  # running | finished | stopped (early) | failed
    failure: str = ""  # one line
    epochs: int = 0  # after which it is finished at the latest
    over: bool = False  # it was trained to its end
    history: list[dict[str, Any]] = field(default_factory=list)  # a row per epoch

    def tell(self, row: dict[str, Any]) -> None:
        """An epoch has ended; one that is told again replaces what was told of it."""
        self.history = [each for each in self.history if each["epoch"] < row["epoch"]] + [row]

    def end(self, failure: str = "") -> None:
        """It will not go on."""
        if not failure and not self.history:
            failure = "it ended before its first epoch did"
        if not failure and not math.isfinite(self.history[-1]["val_loss"]):
            failure = f"the validation loss is {self.history[-1]['val_loss']}"
        self.failure = failure
        self.status = "failed" if self.failure else "finished" if self.over else "stopped"

    @property
    def succeeded(self) -> bool:
        return self.status in ("finished", "stopped")

    @property
    def images(self) -> int:
        """How many pictures it was trained on."""
        return self.history[-1]["images_seen"] if self.history else 0

    def score(self, search: Search) -> float:
        """The objective after its last epoch; more is better."""
        return search.sign * self.history[-1][OBJECTIVE]


class Ledger:
    """The trials of one search in a folder, a file each, so that a search that was killed goes on where it was."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._began = folder, time.monotonic()
        stored = [json.loads(path.read_text()) for path in sorted(folder.glob("trial-*.json"))]
        self.before = [Trial(**values) for values in stored]  # of earlier sessions
        self._seconds = json.loads((folder / "seconds.json").read_text()) if self.before else 0.0
        self.trials: list[Trial] = []  # that this session has begun, or gone on with

    def begin(self, point: dict[str, Any], seed: int) -> Trial:
        """A new trial, or the one of an earlier session, as far as it had come."""
        number = len(self.trials) + 1
        trial = next((each for each in self.before if each.point == point and each.seed == seed), Trial(number, point, seed))
        trial.number, trial.point = number, point  # JSON has lost the order of its settings
        if not trial.succeeded:
            trial.status, trial.failure = "running", ""
        self.trials.append(trial)
        self.keep(trial)
        return trial

    def keep(self, trial: Trial) -> None:
        """Write what is known of a trial."""
        files.write_json(self._folder / "seconds.json", self.seconds)
        files.write_json(self._folder / f"trial-{trial.number:05}.json", asdict(trial))

    def has(self, point: dict[str, Any], seed: int) -> bool:
        """Whether this session has begun that trial."""
        return any(trial.point == point and trial.seed == seed for trial in self.trials)

    @property
    def seconds(self) -> float:
        """How long the search has taken, over all sessions."""
        return self._seconds + time.monotonic() - self._began

    @property
    def images(self) -> int:
        return sum(trial.images for trial in self.trials)


def best_first(trials: Iterable[Trial], search: Search) -> list[list[Trial]]:
    """The candidates, each as its successful trials: more seeds first, then more epochs of its own, then the mean score.

    So a trial that was stopped early never goes before a finished one, nor one seed before the mean of several.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.succeeded:
            groups.setdefault(json.dumps(trial.point, sort_keys=True), []).append(trial)

    def merit(group: list[Trial]) -> tuple[int, float, float]:
        done = min(1 if trial.over else trial.history[-1]["epoch"] / trial.epochs for trial in group)
        return len(group), done, mean(trial.score(search) for trial in group)

    return sorted(groups.values(), key=merit, reverse=True)


def best(trials: Iterable[Trial], search: Search) -> dict[str, Any]:
    """The winner as plain values: its settings, its score, and the command that adopts it."""
    winner = best_first(trials, search)[0]
    value, spread = mean_and_spread([search.sign * trial.score(search) for trial in winner])
    return {
        "student": search.student,
        "guidance": search.guidance,
        "settings": winner[0].point,
        "objective": search.objective,
        "value": round(value, 6),
        "spread": None if spread is None else round(spread, 6),
        "seeds": [trial.seed for trial in winner],
        "epochs": winner[0].history[-1]["epoch"],
        "trials": [trial.number for trial in winner],
        "command": adoption(winner[0].point),
    }


def adoption(point: dict[str, Any]) -> str:
    """The command that trains with the settings of a point and keeps them in params.yaml."""
    changes = [shlex.quote(f"{name}={json.dumps(value)}") for name, value in point.items()]
    return " ".join(["dvc exp run", *(f"-S {change}" for change in changes)])


def rows(trials: Sequence[Trial], search: Search) -> list[dict[str, Any]]:
    """The trials as a table; numbers are those of the last epoch, seconds an epoch those of the median epoch."""
    return [_row(trial, search) for trial in trials]


def _row(trial: Trial, search: Search) -> dict[str, Any]:
    last = trial.history[-1] if trial.history else {}
    return {
        "trial": trial.number,
        "status": trial.status,
        "seed": trial.seed,
        **{name: json.dumps(trial.point.get(name)) for name in search.space},
        "epochs": last.get("epoch", 0),
        "images_seen": trial.images,
        "seconds_per_epoch": round(median(row["train_seconds"] for row in trial.history), 3) if last else None,
        **{name: last.get(name) for name in FACTS},
        "identity": trial.identity,
        "failure": trial.failure,
    }


def curves(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Every epoch of every trial, in one long table."""
    keys = ("epoch", "images_seen", "learning_rate", *FACTS)
    return [{"trial": trial.number, **{key: row[key] for key in keys}} for trial in trials for row in trial.history]

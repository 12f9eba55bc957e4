"""Which candidates a search tries, in which order, and what it learns from them. Optuna draws; Ray is not known here."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Protocol

from pipeline import config, runs
from pipeline.search.trials import OBJECTIVE, Ledger, Trial
from pipeline.space import Domain, Search

if TYPE_CHECKING:
    import optuna

    from pipeline.training.checkpoint import Model


@dataclass(frozen=True)
class Subject:
    """What is searched: a student, alone or under a guidance, and all that its trainings share."""

    search: Search
    settings: dict[str, Any]  # all of params.yaml, as plain values
    data: runs.Data
    teachers: dict[int, Model]  # by seed; none where the student is trained alone

    def run(self, point: dict[str, Any], seed: int) -> runs.Run:
        """The training of a candidate. Raises UserError where its settings contradict each other, or the data."""
        search = self.search
        changes = {"training.student.duration": search.duration} if search.duration else {}
        settings = config.parse(config.replaced(self.settings, {**changes, **point}), name="candidate")
        network, training, *guidance = (config.section(settings, name) for name in search.sections)
        kind, name = ("guided", f"{search.student}-{search.guidance}") if guidance else ("unguided", search.student)
        with_teacher = {"guidance": guidance[0], "teacher": self.teachers[seed]} if guidance else {}
        return runs.of(kind, name, seed, network, training, data=self.data, **with_teacher)

    def current(self) -> dict[str, Any]:
        """The point of the space where the settings are now; without those that lie outside."""
        now = {name: config.section(config.parse(self.settings), name) for name in self.search.space}
        return {name: value for name, value in now.items() if self.search.space[name].holds(value)}


class Candidates(Protocol):
    """Gives one candidate after the other, and is told how each has ended."""

    def next(self) -> tuple[dict[str, Any], int, Any] | None:
        """A point, a seed and what to return to `learn`; None when there are no more."""

    def learn(self, asked: Any, trial: Trial | None) -> None:
        """How the candidate has ended; None if it was not tried."""


class Listed:
    """Points with their seeds, in this order."""

    def __init__(self, candidates: list[tuple[dict[str, Any], int]]) -> None:
        self._left = iter(candidates)

    def next(self) -> tuple[dict[str, Any], int, Any] | None:
        found = next(self._left, None)
        return found and (*found, None)

    def learn(self, asked: Any, trial: Trial | None) -> None:
        pass


class Drawn:
    """What the searcher draws, after the points that are to be tried first, until the budget is spent.

    A search that goes on begins with the points of its earlier sessions, so that the searcher knows what it knew.
    """

    def __init__(self, subject: Subject, ledger: Ledger, seed: int) -> None:
        self._search, self._ledger, self._seed = subject.search, ledger, seed
        self._study = study(self._search, seed=self._search.seed + len(ledger.before))
        self._distributions = distributions(self._search.space)
        before = [trial.point for trial in ledger.before if trial.seed == seed]
        self._first = before + [point for point in first_points(subject) if point not in before]
        for point in self._first:
            self._study.enqueue_trial(encoded(point, self._search.space))

    def next(self) -> tuple[dict[str, Any], int, Any] | None:
        exhausted = self._search.searcher == "grid" and not self._first
        if exhausted or self._spent():
            return None
        self._first = self._first[1:]
        asked = self._study.ask(self._distributions)
        return decoded(asked.params, self._search.space), self._seed, asked

    def learn(self, asked: Any, trial: Trial | None) -> None:
        from optuna.trial import TrialState

        if trial is None or not trial.succeeded:
            self._study.tell(asked, state=TrialState.FAIL)
        elif trial.status == "stopped":  # TPE ranks it by how far it came
            asked.report(trial.score(self._search), trial.history[-1]["epoch"])
            self._study.tell(asked, state=TrialState.PRUNED)
        else:
            self._study.tell(asked, trial.score(self._search))

    def _spent(self) -> bool:
        budget, ledger = self._search.budget, self._ledger
        return (
            len(ledger.trials) >= budget.trials
            or ledger.images >= (budget.images or math.inf)
            or ledger.seconds >= 60 * (budget.minutes or math.inf)
        )


def first_points(subject: Subject) -> list[dict[str, Any]]:
    """The points that are tried before any is drawn; of a grid, all."""
    search, current = subject.search, subject.current()
    if search.searcher == "grid":
        return [dict(zip(search.space, values, strict=True)) for values in product(*(d.values for d in search.space.values()))]
    return [current] if search.points is None else [{**current, **point} for point in search.points]


def study(search: Search, *, seed: int) -> optuna.Study:
    """What draws the candidates and learns from them; trials that run count as bad, so that others look elsewhere."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tpe = search.searcher == "optuna"
    sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True) if tpe else optuna.samplers.RandomSampler(seed=seed)
    return optuna.create_study(direction="maximize", sampler=sampler)


def distributions(space: dict[str, Domain]) -> dict[str, Any]:
    """The space in Optuna's words; the values of a choice as JSON, since Optuna wants them to be hashable."""
    return {name: _distribution(domain) for name, domain in space.items()}


def _distribution(domain: Domain) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not domain.is_range:
        return CategoricalDistribution([json.dumps(value) for value in domain.values])
    low, high = domain.values
    if domain.kind == "randint":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=domain.kind == "loguniform")


def encoded(point: dict[str, Any], space: dict[str, Domain]) -> dict[str, Any]:
    """A point as Optuna knows it."""
    return {name: _encoded(value, space[name]) for name, value in point.items()}


def _encoded(value: Any, domain: Domain) -> Any:
    if domain.is_range:
        return value
    texts = [json.dumps(each) for each in domain.values]
    return json.dumps(value) if json.dumps(value) in texts else texts[domain.values.index(value)]  # 0.0 where 0 is listed


def decoded(params: dict[str, Any], space: dict[str, Domain]) -> dict[str, Any]:
    """A point as settings know it, numbers to four digits: more say nothing, and a person has to read them."""
    return {name: _decoded(params[name], domain) for name, domain in space.items()}


def _decoded(value: Any, domain: Domain) -> Any:
    if not domain.is_range:
        return json.loads(value)
    low, high = domain.values
    return value if domain.kind == "randint" else min(max(float(f"{value:.4g}"), low), high)


def importances(trials: Sequence[Trial], search: Search) -> tuple[dict[str, float], int]:
    """How much of the objective's variance each setting explains (fANOVA, Hutter et al. 2014), and after which epoch.

    That is the last epoch which all trials reached: only there can those that were stopped be compared with the others.
    Nothing where fewer than four trials succeeded, or all came to the same.
    """
    import optuna

    scored = [trial for trial in trials if trial.succeeded]
    epoch = min((trial.history[-1]["epoch"] for trial in scored), default=0)
    values = [row[OBJECTIVE] for trial in scored for row in trial.history if row["epoch"] == epoch]
    if len(values) < max(4, len(scored)) or len(set(values)) < 2:
        return {}, epoch
    known, shape = study(search, seed=0), distributions(search.space)
    for trial, value in zip(scored, values, strict=True):
        point = encoded(trial.point, search.space)
        known.add_trial(optuna.trial.create_trial(value=value, params=point, distributions=shape))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(known, evaluator=evaluator)), epoch

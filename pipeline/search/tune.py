"""A search with Ray Tune, in which every trial is a run as any other: same loop, same identity, same checkpoints.

Tune decides where and how long trials run, and nothing else: what they have come to is kept by us (`trials.Ledger`), in
files that no new version of Ray can make unreadable. Ray is imported only where it is needed.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from itertools import product
from typing import Any

from pipeline import distributed, files
from pipeline.checkpoints import inside
from pipeline.config import Cluster, UserError
from pipeline.runs import Run
from pipeline.search.candidates import Candidates, Drawn, Listed, Subject
from pipeline.search.trials import OBJECTIVE, Ledger, Trial, best_first
from pipeline.space import Search
from pipeline.together import InThread
from pipeline.training import selection

ENVIRONMENT = {  # before Ray is imported
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one cannot be silent
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # an interrupted search begins no Ray anew
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed has none
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
MOST_REPEATS = 100  # of candidates that were drawn before; then the space is taken for exhausted


@dataclass(frozen=True)
class Listener:
    """Whoever wants to know how a search goes on. Called in one thread, which is not the main one."""

    begun: Callable[[Trial], None] = lambda trial: None
    epoch: Callable[[Trial, dict[str, Any]], None] = lambda trial, row: None
    ended: Callable[[Trial], None] = lambda trial: None


def search(subject: Subject, cluster: Cluster, *, seeds: Sequence[int], identity: str, listener: Listener) -> list[Trial]:
    """Search, or go on searching, or give the trials of the search that this identity ended with before.

    Trials have the first of the seeds, finalists all. Raises UserError where fewer trials succeed than the quorum.
    """
    plan, folder = subject.search, files.in_project(cluster.scratch) / identity
    if plan.budget.trials == 0:
        return []
    with distributed.alone(folder):
        ledger, ended = Ledger(folder), folder / "ended.json"
        asked = {"search": plan.model_dump(), "seeds": list(seeds) if plan.finalists else [seeds[0]]}
        if ended.is_file() and (before := json.loads(ended.read_text()))["asked"] == asked:
            return ledger.before[: before["trials"]]
        os.environ.update(ENVIRONMENT)
        with distributed.ray_session():
            _tune(Drawn(subject, ledger, seeds[0]), ledger, subject, cluster, listener)
            _refuse_too_many_failures(ledger.trials, plan)
            finalists = [group[0].point for group in best_first(ledger.trials, plan)[: plan.finalists]]
            if finalists:
                _tune(Listed(list(product(finalists, seeds[1:]))), ledger, subject, cluster, listener, stop_early=False)
        files.write_json(ended, {"asked": asked, "trials": len(ledger.trials)})
        return ledger.trials


def _refuse_too_many_failures(trials: Sequence[Trial], search: Search) -> None:
    failed = [trial for trial in trials if not trial.succeeded]
    succeeded = len(trials) - len(failed)
    if succeeded == 0 or succeeded < search.quorum * len(trials):
        first = f"; trial {failed[0].number}: {failed[0].failure}" if failed else ""
        raise UserError(f"{succeeded} of {len(trials)} trials succeeded, fewer than search.quorum {search.quorum:g}{first}")


def _tune(
    candidates: Candidates,
    ledger: Ledger,
    subject: Subject,
    cluster: Cluster,
    listener: Listener,
    *,
    stop_early: bool = True,
) -> None:
    """Train candidates, as many at once as Ray has room for, until there are no more."""
    from ray import tune

    resources = _resources(cluster)
    placed = {"num_workers": 0, "cpus_per_worker": resources["CPU"], "use_gpu": "GPU" in resources}
    places = {
        name: place and inside(place) for name, place in (("scratch", cluster.scratch), ("checkpoints", cluster.checkpoints))
    }
    here = cluster.model_copy(update={**placed, **places})
    trainable = tune.with_parameters(_train_candidate, subject=subject, cluster=here)
    with tempfile.TemporaryDirectory() as unused:
        tuner = tune.Tuner(
            tune.with_resources(trainable, {name.lower(): amount for name, amount in resources.items()}),
            tune_config=tune.TuneConfig(
                metric=OBJECTIVE,
                mode="max" if subject.search.sign > 0 else "min",
                num_samples=-1,
                search_alg=_suggestions(candidates, ledger, subject, listener),
                scheduler=_scheduler(subject.search) if stop_early else None,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=unused,
                callbacks=[_bookkeeping(ledger, listener)],
                failure_config=tune.FailureConfig(max_failures=cluster.max_failures),
                verbose=0,
            ),
        )
        running = InThread(tuner.fit)
        while not running.done():  # so that an interruption gets through
            wait([running], timeout=0.2)
        running.result()


def _resources(cluster: Cluster) -> dict[str, int]:
    """What one trial takes. Raises UserError where no node has as much."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    use_gpu = any(node.get("GPU") for node in nodes) if cluster.use_gpu == "auto" else cluster.use_gpu
    each = {"CPU": cluster.cpus_per_worker or 1, **({"GPU": 1} if use_gpu else {})}
    if not any(all(node.get(name, 0) >= amount for name, amount in each.items()) for node in nodes):
        wanted = " and ".join(f"{amount:g} {name}" for name, amount in each.items())
        most = " and ".join(f"{max(node.get(name, 0) for node in nodes):g} {name}" for name in each)
        raise UserError(
            f"a trial with {wanted} would wait for ever: the largest node of Ray has {most}; "
            "lower cluster.cpus_per_worker, or set cluster.use_gpu to false"
        )
    return each


def _scheduler(search: Search) -> Any:
    """What stops trials early. It never sees a last epoch, so that what is trained to its end is also written."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

    if search.scheduler == "none":
        return FIFOScheduler()
    if search.scheduler == "median":
        return MedianStoppingRule(time_attr="epoch", grace_period=search.grace_epochs)
    return ASHAScheduler(
        time_attr="epoch", grace_period=search.grace_epochs, reduction_factor=search.reduction_factor, max_t=10**6
    )


def _train_candidate(given: dict[str, Any], subject: Subject, cluster: Cluster) -> None:
    """What a trial does: the same training as everywhere. What goes wrong in it is a row of the search, not its end."""
    from ray import tune

    history = list(given["history"])  # of an earlier session, of which the scheduler is told
    known = len(history)
    for row in given["history"]:
        tune.report(_told([row], finished=False))
    if given["ended"]:
        return

    def on_epoch(row: dict[str, Any]) -> None:
        history[row["epoch"] - 1 :] = [row]
        if row["epoch"] > known and not selection.is_over(history, run.job.training, run.job.timetable):
            tune.report(_told([_judged(history, run, subject.search)], finished=False))

    try:
        run = subject.run(given["point"], given["seed"])
        listener = distributed.Listener(epoch=on_epoch)
        trained = distributed.fit(run.job, cluster, identity=run.identity, listener=listener).history
    except Exception as error:
        tune.report({"failure": _one_line(error)})
        return
    rows = [_judged(trained[: end + 1], run, subject.search) for end in range(len(trained))]
    tune.report(_told(rows, finished=True))


def _judged(history: list[dict[str, Any]], run: Run, search: Search) -> dict[str, Any]:
    """The last epoch, and what the objective is of the weights that would be kept after it."""
    return history[-1] | {OBJECTIVE: selection.chosen(history, run.job.training)[search.objective]}


def _told(rows: list[dict[str, Any]], *, finished: bool) -> dict[str, Any]:
    return {"epoch": rows[-1]["epoch"], OBJECTIVE: rows[-1][OBJECTIVE], "rows": rows, "finished": finished}


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:300]}"


def _suggestions(candidates: Candidates, ledger: Ledger, subject: Subject, listener: Listener) -> Any:
    """The candidates as a searcher of Tune's."""
    from ray.tune.search import Searcher

    class Suggestions(Searcher):
        """Begins one trial after the other; those that cannot be trained fail here."""

        def __init__(self) -> None:
            super().__init__()
            self._asked: dict[str, tuple[Any, Trial]] = {}

        def suggest(self, trial_id: str) -> dict[str, Any] | str:
            repeats = 0
            while repeats < MOST_REPEATS and (candidate := candidates.next()):
                point, seed, asked = candidate
                if ledger.has(point, seed):
                    repeats += 1
                    candidates.learn(asked, None)
                    continue
                trial = _begun(point, seed, ledger, subject)
                if trial.status != "failed":
                    self._asked[trial_id] = asked, trial
                    return _given(trial)
                candidates.learn(asked, trial)
                listener.ended(trial)
            return Searcher.FINISHED

        def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
            asked, trial = self._asked.pop(trial_id)
            if trial.status == "running":  # Tune tells its callbacks later
                trial.end(trial.failure or ("the process of the trial was lost" if error else ""))
            candidates.learn(asked, trial)

        def save_to_dir(self, *_args: Any, **_kwargs: Any) -> None:
            """Nothing: the ledger knows."""

        def __reduce__(self) -> tuple[type, tuple]:
            return object, ()  # Tune keeps what it is given in a file, which we do not need

    return Suggestions()


def _begun(point: dict[str, Any], seed: int, ledger: Ledger, subject: Subject) -> Trial:
    """The trial of a candidate; it has failed already where its settings contradict each other."""
    trial = ledger.begin(point, seed)
    try:
        run = subject.run(point, seed)
        trial.identity, trial.epochs = run.identity, run.job.timetable.epochs
    except UserError as error:
        trial.end(_one_line(error))
    ledger.keep(trial)
    return trial


def _given(trial: Trial) -> dict[str, Any]:
    """What Tune hands to the process of a trial."""
    past = {"history": trial.history, "ended": trial.succeeded}
    return {"number": trial.number, "point": trial.point, "seed": trial.seed, **past}


def _bookkeeping(ledger: Ledger, listener: Listener) -> Any:
    """What Tune tells of the trials, into the ledger and to the listener."""
    from ray import tune

    class Bookkeeping(tune.Callback):
        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            listener.begun(self._mine(trial))

        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
            mine = self._mine(trial)
            if mine.succeeded:  # in an earlier session
                return
            mine.failure, mine.over = result.get("failure", ""), result.get("finished", mine.over)
            for row in result.get("rows", []):
                mine.tell(row)
                listener.epoch(mine, row)
            ledger.keep(mine)

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            ledger.keep(self._mine(trial))
            listener.ended(self._mine(trial))

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.on_trial_complete(iteration, trials, trial)

        def _mine(self, trial: Any) -> Trial:
            return ledger.trials[trial.config["number"] - 1]

        def __reduce__(self) -> tuple[type, tuple]:
            return object, ()  # Tune keeps what it is given in a file, which we do not need

    return Bookkeeping()

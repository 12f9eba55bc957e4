"""Search for better settings of one student, on the validation pictures: python -m stages.tune."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ruamel.yaml import YAML

from pipeline import config, files, runs, tracking
from pipeline.config import Experiment, Tracking
from pipeline.identity import identity
from pipeline.report import search as pictures
from pipeline.report.figures import svg
from pipeline.search import trials, tune
from pipeline.search.candidates import Subject
from pipeline.search.trials import Trial
from pipeline.space import Search
from pipeline.training.checkpoint import Model, load_model
from stages import common

HOW_FAR = {"budget", "finalists", "quorum"}  # a search that is to go further goes on where it was


def main() -> None:
    search, experiment, guidance, cluster, track = config.load("search", "experiment", "guidance", "cluster", "tracking")
    network, recipe = config.load(f"students.{search.student}", "training.student")
    subject = Subject(search, config.tree(), runs.data(common.PREPARED), _teachers(search, experiment))
    settings = {
        "search": search.model_dump(exclude=HOW_FAR),
        "network": network.model_dump(),
        "training": recipe.model_dump(),
        "guidance": guidance[search.guidance].model_dump() if search.guidance else None,
        "teachers": [teacher.digest for teacher in subject.teachers.values()],
    }
    named = identity(kind="search", data_fingerprint=subject.data.card["fingerprint"], **settings)

    with _tracked(track, search, named) as (parent, listener):
        done = tune.search(subject, cluster, seeds=experiment.seeds, identity=named, listener=listener)
        best = trials.best(done, search) if done else None
        _write(done, search, best)
        parent.artifacts(common.SEARCH)
        if best:
            parent.facts({search.objective: best["value"]})
            print(f"best of {len(done)} trials: {search.objective} {best['value']:.4f}; to train with its settings:")
            print(best["command"])


def _teachers(search: Search, experiment: Experiment) -> dict[int, Model]:
    if search.guidance is None:
        return {}
    seeds = experiment.seeds if search.finalists else experiment.seeds[:1]
    folders = {seed: common.place(common.MODELS, "teacher", experiment.teacher, seed) for seed in seeds}
    return {seed: load_model(folder, made_by="teacher") for seed, folder in folders.items()}


def _write(done: list[Trial], search: Search, best: dict[str, Any] | None) -> None:
    yaml, text = YAML(), io.StringIO()
    yaml.width = 10**6  # the command stays one line
    yaml.dump(best, text)
    files.write_csv(common.SEARCH / "trials.csv", trials.rows(done, search))
    files.write_csv(common.SEARCH / "curves.csv", trials.curves(done))
    files.write(common.SEARCH / "best.yaml", text.getvalue())
    files.write(common.SEARCH / "section.html", pictures.section(done, search, best) if best else "")
    files.write(common.SEARCH / "importance.svg", svg(pictures.importance(done, search)))
    files.write(common.SEARCH / "parallel.svg", svg(pictures.parallel(done, search)))


@contextmanager
def _tracked(track: Tracking, search: Search, named: str) -> Iterator[tuple[tracking.Run, tune.Listener]]:
    """The search as a run in MLflow with a child for each trial, and a line in the terminal for each that has ended."""
    children: dict[int, tracking.Run] = {}
    label = search.student if search.guidance is None else f"{search.student}-{search.guidance}"

    def begun(trial: Trial) -> None:
        if trial.number not in children:
            tags = {"kind": "trial", "name": label, "seed": str(trial.seed), "run_identity": trial.identity}
            about = {"name": f"trial {trial.number}", "tags": tags, "params": trial.point}
            children[trial.number] = tracking.child(track, parent, identity=f"{named}-{trial.identity}", **about)

    def epoch(trial: Trial, row: dict[str, Any]) -> None:
        children[trial.number].epoch(row)

    def ended(trial: Trial) -> None:
        print(pictures.line(trial, search), flush=True)
        if child := children.pop(trial.number, None):
            child.tag("status", trial.status)
            child.end("FINISHED" if trial.succeeded else "FAILED")

    tags = {"kind": "search", "name": label}
    with tracking.run(
        track, identity=named, name=f"search/{label}", tags=tags, params=search.model_dump(exclude_none=True)
    ) as parent:
        try:
            yield parent, tune.Listener(begun=begun, epoch=epoch, ended=ended)
        finally:
            for child in children.values():
                child.end("KILLED")


if __name__ == "__main__":
    common.run(main)

"""What the stages teacher, unguided and guided share: train one network and write its outs."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pipeline import distributed, files, runs, tracking
from pipeline.config import Cluster, Guidance, Network, Tracking, Training
from pipeline.data.features import Features
from pipeline.distributed import Trained
from pipeline.progress import progress
from pipeline.runs import Run
from pipeline.training import selection
from pipeline.training.checkpoint import Model, save_model
from stages import common

CURVE = (
    "epoch",
    "images_seen",
    "learning_rate",
    "beta",
    "train_loss",
    "train_accuracy",
    "guidance_loss",
    "distillation_loss",
    "val_loss",
    "val_accuracy",
    "val_ema_loss",
    "val_ema_accuracy",
)


@dataclass(frozen=True)
class Plan:
    """A run, where it is trained and where it is recorded; refit: trained anew on all pictures but those of test in the end."""

    run: Run
    cluster: Cluster
    track: Tracking
    refit: bool = False

    @property
    def identity(self) -> str:
        """Of the training whose weights are kept."""
        return runs.refit_identity(self.run) if self.refit else self.run.identity

    def is_done(self) -> bool:
        """Whether all outs of this very run are there. DVC removes them before it runs a stage: this is for train_all."""
        folder, results = _places(self.run)
        try:
            made = json.loads((folder / "config.json").read_text())["espalier"]["identity"]
        except (OSError, ValueError, KeyError):
            return False
        parts = (folder / "model.safetensors", results / "curve.csv", results / "training.json")
        return bool(made == self.identity) and all(part.is_file() for part in parts)


def plan(
    kind: str,
    name: str,
    seed: int,
    network: Network,
    training: Training,
    *,
    cluster: Cluster,
    track: Tracking,
    guidance: Guidance | None = None,
    teacher: Model | None = None,
    features: Features | None = None,
) -> Plan:
    """What is to be trained under this name, on the prepared data."""
    lessons = {"guidance": guidance, "teacher": teacher, "features": features}
    run = runs.of(kind, name, seed, network, training, data=runs.data(common.PREPARED), **lessons)
    return Plan(run, cluster, track, training.refit)


def train(plan: Plan) -> None:
    """Train a network and write models/<kind>/<name>/<seed> and the curve and summary beside it in results/."""
    run = plan.run
    if plan.is_done():
        print(f"{run.label} is up to date")
        return
    folder, results = _places(run)
    with tracking.run(plan.track, identity=plan.identity, name=run.label, tags=run.tags, params=run.settings) as tracked:
        trained = _fit(run, plan.cluster, tracked)
        model, summary = Model(run.job.config, trained.weights), _summary(trained.history, run.job.training)
        if plan.refit:
            model, facts = _refit(run, plan.cluster, epochs=summary["epoch"])
            tracked.facts(facts)
            summary |= facts
        save_model(folder, model)
        tracked.artifacts(folder, "model")
    files.write_csv(results / "curve.csv", [_of_curve(row) for row in trained.history])
    files.write_json(results / "training.json", summary)


def _places(run: Run) -> tuple[Path, Path]:
    """Its folders in models/ and in results/."""
    kind, name, seed = (run.about[key] for key in ("kind", "name", "seed"))
    return common.place(common.MODELS, kind, name, seed), common.place(common.RESULTS, kind, name, seed)


def _fit(run: Run, cluster: Cluster, tracked: tracking.Run) -> Trained:
    """The training of a network, shown and tracked epoch by epoch."""
    with progress(run.label, epochs=run.job.timetable.epochs, images=run.images) as shown:

        def on_epoch(row: dict[str, Any]) -> None:
            shown.epoch(row)
            tracked.epoch(row)

        listener = distributed.Listener(epoch=on_epoch, images=shown.images, note=shown.note)
        trained = distributed.fit(run.job, cluster, identity=run.identity, listener=listener)
    for row in trained.history:
        tracked.epoch(row)
    return trained


def _refit(run: Run, cluster: Cluster, *, epochs: int) -> tuple[Model, dict[str, Any]]:
    """The network trained anew on all pictures but those of test, to the epoch that validation chose, and facts on that."""
    again = runs.refit(run, epochs=epochs)
    with progress(f"{run.label} refit", epochs=epochs, images=again.images) as shown:
        listener = distributed.Listener(epoch=shown.epoch, images=shown.images, note=shown.note)
        trained = distributed.fit(again.job, cluster, identity=again.identity, listener=listener)
    last = trained.history[-1]
    facts = {"epochs": epochs, "images_seen": last["images_seen"], "train_loss": last["train_loss"]}
    facts["train_seconds"] = round(sum(row["train_seconds"] for row in trained.history), 3)
    return Model(again.job.config, trained.weights), {f"refit_{key}": value for key, value in facts.items()}


def _of_curve(row: dict[str, Any]) -> dict[str, Any]:
    alike = {key: value for key, value in row.items() if key.startswith("guidance_cka_")}
    return {**{key: row[key] for key in CURVE if key in row}, **alike}


def _summary(history: list[dict[str, Any]], training: Training) -> dict[str, Any]:
    seconds, typical = sum(row["train_seconds"] for row in history), _typical_seconds(history)
    last = history[-1]
    return {
        "result": training.result,
        **selection.chosen(history, training),
        "train_loss": last["train_loss"],
        "images_seen": last["images_seen"],
        "train_seconds": round(seconds, 3),
        "typical_train_seconds": round(typical, 3),
        "train_images_per_second": round(last["images_seen"] / typical, 1),
        "hardware": last["hardware"],
        "data": last["data"],
    }


def _typical_seconds(history: list[dict[str, Any]]) -> float:
    """What the training takes where every epoch takes the median: epochs with guidance and those without, each their own."""
    with_guidance, without = ([row["train_seconds"] for row in history if bool(row["beta"]) is way] for way in (True, False))
    return sum(len(seconds) * median(seconds) for seconds in (with_guidance, without) if seconds)

"""What the stages teacher, unguided and guided share: train one network and write its outs."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pipeline import distributed, files, runs, tracking
from pipeline.config import Cluster, Guidance, Network, Tracking, Training
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
    "val_loss",
    "val_accuracy",
    "val_ema_loss",
    "val_ema_accuracy",
)


@dataclass(frozen=True)
class Plan:
    """A run, where it is trained and where it is recorded."""

    run: Run
    cluster: Cluster
    track: Tracking

    def is_done(self) -> bool:
        """Whether all outs of this very run are there. DVC removes them before it runs a stage: this is for train_all."""
        folder, results = _places(self.run)
        try:
            made = json.loads((folder / "config.json").read_text())["espalier"]["identity"]
        except (OSError, ValueError, KeyError):
            return False
        parts = (folder / "model.safetensors", results / "curve.csv", results / "training.json")
        return bool(made == self.run.identity) and all(part.is_file() for part in parts)


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
) -> Plan:
    """What is to be trained under this name, on the prepared data."""
    data = runs.data(common.PREPARED)
    return Plan(runs.of(kind, name, seed, network, training, data=data, guidance=guidance, teacher=teacher), cluster, track)


def train(plan: Plan) -> None:
    """Train a network and write models/<kind>/<name>/<seed> and the curve and summary beside it in results/."""
    run = plan.run
    if plan.is_done():
        print(f"{run.label} is up to date")
        return
    with (
        tracking.run(plan.track, identity=run.identity, name=run.label, tags=run.tags, params=run.settings) as tracked,
        progress(run.label, epochs=run.job.training.epochs, images=run.images) as shown,
    ):

        def on_epoch(row: dict[str, Any]) -> None:
            shown.epoch(row)
            tracked.epoch(row)

        listener = distributed.Listener(epoch=on_epoch, images=shown.images, note=shown.note)
        trained = distributed.fit(run.job, plan.cluster, identity=run.identity, listener=listener)
        for row in trained.history:
            tracked.epoch(row)
        folder, results = _places(run)
        save_model(folder, Model(run.job.config, trained.weights))
        tracked.artifacts(folder, "model")
    files.write_csv(results / "curve.csv", [{key: row[key] for key in CURVE if key in row} for row in trained.history])
    files.write_json(results / "training.json", _summary(trained.history, run.job.training))


def _places(run: Run) -> tuple[Path, Path]:
    """Its folders in models/ and in results/."""
    kind, name, seed = (run.about[key] for key in ("kind", "name", "seed"))
    return common.place(common.MODELS, kind, name, seed), common.place(common.RESULTS, kind, name, seed)


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

"""What the stages teacher, unguided and guided share: train one network and write its outs."""

from statistics import median
from typing import Any

from pipeline import distributed, files, models, tracking
from pipeline.config import Cluster, Guidance, Network, Tracking, Training
from pipeline.data import batches, loading, prepared
from pipeline.identity import identity, versions
from pipeline.progress import progress
from pipeline.training import selection
from pipeline.training.checkpoint import Model, model_config, save_model
from pipeline.training.loop import Job
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


def train(
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
) -> None:
    """Train a network and write models/<kind>/<name>/<seed> and the curve and summary beside it in results/."""
    card = prepared.read_card(common.PREPARED)
    stored_size = card["image_shape"] and card["image_shape"][0]
    train, validation = (
        loading.pictures(common.PREPARED / f"{split}.arrow", channels=card["channels"]) for split in ("train", "validation")
    )
    training = batches.budgeted(training, len(train.labels))
    card |= {"image_shape": batches.image_shape(card, training)}
    settings = {
        "network": network.model_dump(),
        "training": training.model_dump(),
        "guidance": guidance.model_dump() if guidance else None,
        "teacher": teacher.digest if teacher else None,
    }
    about = {"kind": kind, "name": name, "seed": seed, "data_fingerprint": card["fingerprint"]}
    run = identity(**about, **settings)
    arguments = models.arguments(network, image_shape=card["image_shape"], classes=len(card["classes"]))
    provenance = {**about, **settings, "identity": run, "versions": versions(), "stored_size": stored_size}
    config = model_config(network.model, arguments, card, provenance)
    job = Job(config, training, seed, train, validation, guidance, teacher)
    steps = batches.steps_per_epoch(len(train.labels), training)
    label = f"{kind}/{name}/{seed}"

    with (
        tracking.run(track, identity=run, name=label, tags=_tags(about), params=settings) as tracked,
        progress(label, epochs=training.epochs, images=training.epochs * steps * training.batch_size) as shown,
    ):

        def on_epoch(row: dict[str, Any]) -> None:
            shown.epoch(row)
            tracked.epoch(row)

        listener = distributed.Listener(epoch=on_epoch, images=shown.images)
        trained = distributed.fit(job, cluster, identity=run, listener=listener)
        for row in trained.history:
            tracked.epoch(row)
        folder = common.place(common.MODELS, kind, name, seed)
        save_model(folder, Model(config, trained.weights))
        tracked.artifacts(folder, "model")
    results = common.place(common.RESULTS, kind, name, seed)
    files.write_csv(results / "curve.csv", [{key: row[key] for key in CURVE if key in row} for row in trained.history])
    files.write_json(results / "training.json", _summary(trained.history, training))


def _tags(about: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in about.items()}


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

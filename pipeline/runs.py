"""A run: one training that settings and prepared data ask for, under the name and identity that it has everywhere."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import models
from pipeline.config import Guidance, Network, Training, UserError
from pipeline.data import batches, loading, prepared
from pipeline.data.features import Features
from pipeline.data.loading import Pictures
from pipeline.durations import Timetable
from pipeline.identity import identity, versions
from pipeline.training.checkpoint import Model, model_config
from pipeline.training.loop import Job


@dataclass(frozen=True)
class Data:
    """What all runs on one prepared data set share."""

    card: dict[str, Any]
    train: Pictures
    validation: Pictures


@dataclass(frozen=True)
class Run:
    """A training and what is known of it before it begins."""

    identity: str
    about: dict[str, Any]  # kind, name, seed and the data's fingerprint
    settings: dict[str, Any]  # of network, training and guidance, and the teacher's digest, as plain values
    job: Job

    @property
    def label(self) -> str:
        """kind/name/seed."""
        return f"{self.about['kind']}/{self.about['name']}/{self.about['seed']}"

    @property
    def tags(self) -> dict[str, str]:
        """What MLflow is told it is."""
        return {key: str(value) for key, value in self.about.items()}

    @property
    def images(self) -> int:
        """How many pictures it trains on, each counted as often as it is shown."""
        times = self.job.timetable
        return times.steps_after(self.job.until or times.epochs) * times.batch_size


def data(folder: Path) -> Data:
    """The prepared data in a folder, without its test split."""
    card = prepared.read_card(folder)
    train, validation = (
        loading.pictures(folder / f"{split}.arrow", channels=card["channels"]) for split in ("train", "validation")
    )
    return Data(card, train, validation)


def of(
    kind: str,
    name: str,
    seed: int,
    network: Network,
    training: Training,
    *,
    data: Data,
    guidance: Guidance | None = None,
    teacher: Model | None = None,
    features: Features | None = None,
) -> Run:
    """The run of these settings. Raises UserError where they do not suit the data."""
    if guidance and guidance.offline and not features:
        raise UserError("guidance with offline needs the features that a stage of that name stores; set offline to false")
    training = training.model_copy(update={"refit": False})
    _refuse_what_does_not_end(training, guidance, batches.timetable(len(data.train.labels), training))
    card = data.card | {"image_shape": batches.image_shape(data.card, training)}
    settings = {
        "network": network.model_dump(),
        "training": training.model_dump(),
        "guidance": guidance.model_dump() if guidance else None,
        "teacher": teacher.digest if teacher else None,
    }
    about = {"kind": kind, "name": name, "seed": seed, "data_fingerprint": card["fingerprint"]}
    named = identity(**about, **settings)
    arguments = models.arguments(network, image_shape=card["image_shape"], classes=len(card["classes"]))
    stored_size = data.card["image_shape"] and data.card["image_shape"][0]
    provenance = {**about, **settings, "identity": named, "versions": versions(), "stored_size": stored_size}
    config = model_config(network.model, arguments, card, provenance)
    return Run(named, about, settings, Job(config, training, seed, data.train, data.validation, guidance, teacher, features))


def _refuse_what_does_not_end(training: Training, guidance: Guidance | None, timetable: Timetable) -> None:
    """Raise UserError where the warm-up or a guidance would last longer than the training."""
    whole = f"duration '{training.duration}', {timetable.total_steps} steps here"
    if (warmup := timetable.steps(training.warmup)) >= timetable.total_steps:
        raise UserError(f"warmup '{training.warmup}' is {warmup} steps; it must be less than {whole}")
    if guidance and guidance.end and (end := timetable.steps(guidance.end)) > timetable.total_steps:
        raise UserError(f"guidance end '{guidance.end}' is {end} steps; it must be at most {whole}")


def refit_identity(run: Run) -> str:
    """The name of the training that follows where `refit` is asked for; it is known before the epochs are chosen."""
    return identity(refit=run.identity)


def refit(run: Run, *, epochs: int) -> Run:
    """The same training on the training and the validation pictures, ended after so many epochs of its schedules."""
    job, named = run.job, refit_identity(run)
    assert job.validation
    result = "ema" if "ema" in job.training.result else "last"
    update = {"result": result, "patience": None, "duration": f"{job.timetable.epochs} epochs"}
    recipe = job.training.model_copy(update=update)
    both = loading.joined(job.train, job.validation)
    provenance = {**job.config["espalier"], "identity": named, "refit": {"of": run.identity, "epochs": epochs}}
    config = {**job.config, "espalier": provenance}
    again = replace(job, config=config, training=recipe, train=both, validation=None, until=epochs)
    return replace(run, identity=named, job=again)

"""A network trained anew on training and validation pictures, to the epoch that validation chose."""

import json
import shutil

import numpy as np
import pytest
import torch

from pipeline import config, distributed, runs
from pipeline.config import Data, Tracking, UserError
from pipeline.data import loading, sources
from pipeline.data.augment.geometry import Frame
from pipeline.data.loading import Take
from pipeline.data.prepare import prepare
from pipeline.progress import Progress
from pipeline.training.checkpoint import load_model
from stages import common, training
from tests.conftest import SL_VIT, cluster, recipe

NOWHERE = Tracking(enabled=False, experiment="none", folder="none")
BEST = recipe(duration="4 epochs", result="best_ema", ema_decay=0.9)
REFIT = BEST.model_copy(update={"refit": True})


def digits(**changes):
    """A fifth of scikit-learn's digits."""
    plain = {"validation_fraction": 0.2, "test_fraction": 0.5, "train_fraction": 0.25, "split_seed": 0}
    return Data(**{"source": "digits", "path": "", "image_size": 8, "unreadable": "error", **plain, **changes})


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with prepared data, as stages find it."""
    monkeypatch.chdir(tmp_path)
    prepare(sources.read(digits()), digits(), common.PREPARED)
    return tmp_path


def train(recipe, scratch=".runs"):
    where = {"cluster": cluster(scratch=scratch), "track": NOWHERE}
    training.train(training.plan("unguided", "vit", 0, SL_VIT, recipe, **where))
    folder = common.place(common.RESULTS, "unguided", "vit", 0)
    model = load_model(common.place(common.MODELS, "unguided", "vit", 0), made_by="unguided")
    return model, json.loads((folder / "training.json").read_text()), (folder / "curve.csv").read_text()


def equal(first, second):
    return all(torch.equal(weight, second[name]) for name, weight in first.items()) and len(first) == len(second)


@pytest.mark.parametrize("image_size", [8, None])
@pytest.mark.parametrize("in_files", [True, False])
def test_joined_splits_hold_the_pictures_of_both_in_their_order(image_size, in_files, tmp_path, monkeypatch):
    if in_files:
        monkeypatch.setattr(loading, "CARRIED_BYTES", 0)
    prepare(sources.read(digits(image_size=image_size)), digits(image_size=image_size), tmp_path)
    parts = [loading.pictures(tmp_path / f"{split}.arrow", channels=1) for split in ("train", "validation")]
    both, cpu = loading.joined(*parts), torch.device("cpu")
    sizes = [len(part.labels) for part in parts]
    expected = [
        next(loading.open_source(part, cpu).fetch([Take(np.arange(size))], Frame(8)))
        for part, size in zip(parts, sizes, strict=True)
    ]
    rows = np.random.default_rng(0).permutation(sum(sizes))
    for residence in ("auto", "streaming"):
        source = loading.open_source(both, cpu, residence=residence)
        assert torch.equal(next(source.fetch([Take(rows)], Frame(8))), torch.cat(expected)[torch.from_numpy(rows)])
        assert torch.equal(source.labels, torch.from_numpy(np.concatenate([part.labels for part in parts])))


def test_a_refit_is_a_training_on_both_splits_that_ends_at_the_chosen_epoch(project):
    model, summary, curve = train(REFIT)
    chosen, data = summary["epoch"], runs.data(common.PREPARED)
    first = runs.of("unguided", "vit", 0, SL_VIT, BEST, data=data)
    both = len(data.train.labels) + len(data.validation.labels)
    assert summary["refit_epochs"] == chosen
    assert summary["refit_images_seen"] == chosen * (both // BEST.batch_size) * BEST.batch_size
    by_hand = distributed.fit(
        runs.refit(first, epochs=chosen).job, cluster(scratch="elsewhere"), identity="x", listener=distributed.Listener()
    )
    assert equal(model.weights, by_hand.weights) and "val_loss" not in by_hand.history[0]
    assert model.config["espalier"]["refit"] == {"of": first.identity, "epochs": chosen}

    plain, without, same_curve = train(BEST)
    assert not equal(plain.weights, model.weights) and same_curve == curve
    assert {key: value for key, value in summary.items() if not key.startswith("refit")} == without
    assert plain.config["espalier"]["identity"] == first.identity != model.config["espalier"]["identity"]


def test_an_interrupted_refit_goes_on(project, monkeypatch):
    unbroken, *_ = train(REFIT)
    shutil.rmtree(common.MODELS)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Progress, "epoch", interrupt_in_refit)
        train(REFIT, scratch="again")
    assert not common.MODELS.exists()
    resumed, *_ = train(REFIT, scratch="again")
    assert equal(resumed.weights, unbroken.weights)


def interrupt_in_refit(progress, row):
    if progress._name.endswith("refit"):
        raise KeyboardInterrupt


def test_a_teacher_that_saw_validation_is_refused(params):
    params["training"]["teacher"]["refit"] = True
    with pytest.raises(UserError, match="a teacher with refit has seen the validation pictures"):
        config.parse(params)

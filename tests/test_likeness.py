"""Likeness to the teacher by epoch: told of every guided training, to its end, and seen without touching anything."""

import pytest
import torch

from pipeline import similarity
from pipeline.config import Guidance
from pipeline.training import guidance, likeness
from pipeline.training.checkpoint import Model
from tests.conftest import RESNET, SL_VIT, job, numbers, recipe, teacher
from tests.test_training import EARLY, fit

KEYS = [f"guidance_cka_{number}" for number in (1, 2, 3)]


def without_likeness(history):
    return [{key: value for key, value in row.items() if key not in KEYS} for row in numbers(history)]


@pytest.mark.parametrize("student", [SL_VIT, RESNET], ids=["vit", "resnet"])
def test_looking_changes_nothing(student, tmp_path, monkeypatch):
    made = job(student, guidance=EARLY, teacher=teacher(), training=recipe(ema_decay=0.9))
    seen = fit(made, tmp_path / "seen")
    monkeypatch.setattr(likeness, "FEWEST_PICTURES", 10**6)
    unseen = fit(made, tmp_path / "unseen")
    assert KEYS[0] not in unseen.history[0] and without_likeness(seen.history) == numbers(unseen.history)
    assert all(torch.equal(seen.weights[name], unseen.weights[name]) for name in unseen.weights)


def test_it_is_told_of_guided_trainings_alone_and_goes_on_when_guidance_has_ended(tmp_path):
    early = fit(job(guidance=EARLY, teacher=teacher()), tmp_path / "early").history
    assert [bool(row["beta"]) for row in early] == [True, True, False]
    assert all(-0.5 < row[key] <= 1 for row in early for key in KEYS)
    nothing = Guidance(beta=0.0, schedule="constant")
    for name, how in {"alone": {}, "weightless": {"guidance": nothing, "teacher": teacher()}}.items():
        assert not set(KEYS) & set(fit(job(**how), tmp_path / name).history[-1])


def test_the_last_epoch_has_the_likeness_of_the_trained_network(tmp_path):
    model, made = teacher(), job(guidance=EARLY, teacher=teacher())
    trained = fit(made, tmp_path)
    student = Model(made.config, trained.weights).network()
    images = (torch.from_numpy(made.validation.pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        sides = [each.forward_intermediates(images, indices=each.default_layers)[1] for each in (student, model.network())]
    own, theirs = ([similarity.gram_of_maps(maps) for maps in side] for side in sides)
    expected = [similarity.cka(*pair) for pair in zip(own, theirs, strict=True)]
    assert [trained.history[-1][key] for key in KEYS] == pytest.approx(expected, abs=1e-4)


def test_a_teacher_is_like_itself_at_any_size_of_its_maps():
    model, pixels = teacher(), torch.randint(0, 256, (20, 8, 8, 3), dtype=torch.uint8)
    network = model.network()
    itself = guidance.Teacher(network, (8, 8))
    alike = likeness.Likeness(itself, network.default_layers, pixels, lambda each: each.permute(0, 3, 1, 2) / 255)
    assert list(alike.of(model.network()).values()) == pytest.approx([1, 1, 1], abs=1e-6)

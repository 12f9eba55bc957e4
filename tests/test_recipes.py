"""Every recipe is a complete params.yaml, whose networks can be built and take two steps."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import config, distributed, models
from pipeline.config import Settings
from pipeline.report import tables
from pipeline.training.checkpoint import Model, model_config
from pipeline.training.loop import Job, Pictures
from tests.conftest import cluster

RECIPES = sorted(Path("pipeline/recipes").glob("*.yaml"))
CLASSES = [str(label) for label in range(10)]


def networks(path: Path) -> list[tuple[str, str]]:
    settings = config.parse(config._read(path), name=path.name)
    return [("teacher", name) for name in settings.teachers] + [("student", name) for name in settings.students]


def job(settings: Settings, kind: str, name: str, **changes) -> Job:
    """Two steps of two pictures, otherwise as the recipe has it."""
    recipe = getattr(settings.training, kind)
    short = recipe.model_copy(update={"duration": "2 steps", "batch_size": 2, "warmup": "0 steps", "passes_per_epoch": 1})
    rng, stored = np.random.default_rng(0), settings.data.image_size
    pictures = Pictures(rng.integers(0, 256, (4, stored, stored, 3), dtype=np.uint8), np.arange(4))
    side = recipe.image_size or stored
    card = {"image_shape": [side, side, 3], "classes": CLASSES, "mean": [0.5] * 3, "std": [0.25] * 3}
    network = getattr(settings, f"{kind}s")[name]
    arguments = models.arguments(network, image_shape=card["image_shape"], classes=len(CLASSES))
    return Job(model_config(network.model, arguments, card, {}), short, 0, pictures, pictures, **changes)


def fit(made: Job, scratch: Path) -> distributed.Trained:
    return distributed.fit(made, cluster(scratch=str(scratch)), identity="run", listener=distributed.Listener())


def rows():
    """Every network of every recipe; those of hundreds of millions of weights only where there is time."""
    for path in RECIPES:
        marks = [pytest.mark.slow] if path.stem == "hu_intel" else []
        yield from (pytest.param(path, *network, marks=marks, id=f"{path.stem}-{network[1]}") for network in networks(path))


@pytest.mark.parametrize(("path", "kind", "name"), [*rows()])
def test_every_network_of_a_recipe_takes_two_steps(path, kind, name, tmp_path):
    settings = config.parse(config._read(path), name=path.name)
    trained = fit(job(settings, kind, name), tmp_path)
    assert trained.history[0]["images_seen"] == 4 and np.isfinite(trained.history[0]["val_loss"])


@pytest.mark.parametrize("path", [path for path in RECIPES if config._read(path)["experiment"]["guided"]], ids=str)
def test_every_guidance_of_a_recipe_takes_two_steps(path, tmp_path):
    settings = config.parse(config._read(path), name=path.name)
    of_teacher = job(settings, "teacher", settings.experiment.teacher)
    teacher = Model(of_teacher.config, fit(of_teacher, tmp_path / "teacher").weights)
    for name in settings.experiment.guidance:
        made = job(settings, "student", settings.experiment.guided[0], guidance=settings.guidance[name], teacher=teacher)
        assert fit(made, tmp_path / name).history[0]["guidance_loss"] > 0


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_a_recipe_says_what_it_reproduces_what_it_costs_and_how_it_differs(path):
    head, published = path.read_text().split("\ndata:")[0], config.load("experiment", path=path)[0].published
    assert "Cost: " in head
    assert published or "of no paper" in head or all(word in head for word in ("Theirs, ", "Differs from theirs: "))


@pytest.mark.parametrize("path", [path for path in RECIPES if "published:" in path.read_text()], ids=str)
def test_a_papers_numbers_are_of_networks_that_the_recipe_trains_on_its_pictures(path):
    data, experiment = config.load("data", "experiment", path=path)
    trained = {"/".join(network) for network in tables.networks(experiment)}
    for paper in experiment.published:
        assert paper.on(data.source) and all(accuracies.keys() <= trained for accuracies in paper.accuracy.values())

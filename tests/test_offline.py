"""Guidance by maps that were stored before: what is shown of them is what is shown of the pictures."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import config, distributed, offline, runs
from pipeline.config import Augmentation, Guidance, UserError
from pipeline.data import batches, features, loading, sources
from pipeline.data.augment.colours import Colours
from pipeline.data.prepare import prepare
from pipeline.training.checkpoint import Model
from tests.conftest import RESNET, SL_VIT, cluster, numbers, recipe
from tests.test_refit import digits, equal

CPU = torch.device("cpu")
COLOURS = Colours.of([0.5] * 3, [0.25] * 3, CPU)
GUIDED = Guidance(beta=2.5, schedule="constant")
OFFLINE = GUIDED.model_copy(update={"offline": True})
STILL = recipe(augmentation=Augmentation())
CROPS = st.builds(
    Augmentation,
    crop_padding=st.integers(0, 3),
    horizontal_flip=st.booleans(),
    random_resized_crop=st.sampled_from([None, 0.3]),
)


@pytest.fixture
def data(tmp_path):
    prepare(sources.read(digits()), digits(), tmp_path / "prepared")
    return runs.data(tmp_path / "prepared")


@pytest.fixture
def taught(data, tmp_path):
    """A teacher that has seen these pictures once."""
    job = replace(runs.of("teacher", "resnet", 0, RESNET, STILL, data=data).job, until=1)
    where = cluster(scratch=str(tmp_path / "teacher"))
    return Model(job.config, distributed.fit(job, where, identity="teacher", listener=distributed.Listener()).weights)


def fit(data, teacher, guidance, training, folder):
    stored = offline.load(folder / "features", data, teacher, guidance, training) if guidance.offline else None
    made = runs.of("guided", "vit", 0, SL_VIT, training, data=data, guidance=guidance, teacher=teacher, features=stored)
    where = cluster(scratch=str(folder / "runs"))
    return distributed.fit(made.job, where, identity=made.identity, listener=distributed.Listener())


def test_of_pictures_as_they_are_stored_maps_guide_as_the_teacher_does(data, taught, tmp_path):
    offline.store(tmp_path / "features", data, taught, OFFLINE, STILL, CPU)
    there, away = (fit(data, taught, guidance, STILL, tmp_path) for guidance in (GUIDED, OFFLINE))
    for one, other in zip(numbers(there.history), numbers(away.history), strict=True):
        assert one == pytest.approx(other, rel=2e-3)  # the stored ones have 11 bits


@settings(max_examples=40)
@given(CROPS, st.integers(0, 1000), st.sampled_from([1, 2]))
def test_a_map_is_cropped_and_flipped_as_its_picture(augmentation, number, world):
    """The pictures themselves, as maps of one layer."""
    pixels = smooth(12, 16)
    source = loading.Resident(torch.from_numpy(pixels), torch.arange(12))
    made = recipe(duration="1001 epochs", batch_size=4, augmentation=augmentation)
    stored = [pixels.transpose(0, 3, 1, 2).astype(np.float16)]
    for rank in range(world):
        where = {"seed": 3, "epoch": number, "rank": rank, "world": world}
        shown = batches.training(source, made, COLOURS, side=16, classes=12, **where)
        mine = batches.shares(12, made, **where)
        maps = features.shown(stored, mine, augmentation, CPU, side=16, seed=3, epoch=number)
        for (images, _), (found,) in zip(shown, maps, strict=True):
            inside = images.permute(0, 3, 1, 2).float()
            seen = inside > 0  # what a crop adds is black, and the border in a map
            assert (found - inside)[seen].abs().max() < 6  # of 255: bilinear against bicubic


def smooth(count, side):
    """Pictures without edges (count, side, side, 3) uint8, none of them black anywhere."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    slopes = rng.uniform(-60, 60, (count, 1, 1, 3, 2))
    return (128 + slopes[..., 0] * (y - 0.5)[None, :, :, None] + slopes[..., 1] * (x - 0.5)[None, :, :, None]).astype(np.uint8)


def test_features_of_something_else_or_damaged_ones_are_one_line(data, taught, tmp_path):
    folder = tmp_path / "features"
    with pytest.raises(UserError, match="holds no features; `dvc repro features` makes it"):
        offline.load(folder, data, taught, OFFLINE, STILL)
    offline.store(folder, data, taught, OFFLINE, STILL, CPU)
    assert len(offline.load(folder, data, taught, OFFLINE, STILL).opened()) == 3
    fewer = OFFLINE.model_copy(update={"teacher_layers": [0]})
    with pytest.raises(UserError, match="of another teacher or other settings"):
        offline.load(folder, data, taught, fewer, STILL)
    (folder / "1.npy").write_bytes((folder / "1.npy").read_bytes()[:100])
    with pytest.raises(UserError, match=r"is damaged \(ValueError\)"):
        offline.load(folder, data, taught, OFFLINE, STILL)
    (folder / "1.npy").unlink()
    with pytest.raises(UserError, match=r"is damaged \(FileNotFoundError\)"):
        offline.load(folder, data, taught, OFFLINE, STILL)
    about = json.loads((folder / "about.json").read_text())
    (folder / "about.json").write_text(json.dumps({**about, "layers": "many"}))
    with pytest.raises(UserError, match=r"is damaged \(TypeError\)"):
        offline.load(folder, data, taught, OFFLINE, STILL)
    (folder / "about.json").write_text("[]")
    with pytest.raises(UserError, match="about.json is damaged; `dvc repro` makes it anew"):
        offline.load(folder, data, taught, OFFLINE, STILL)


def test_large_features_stay_in_their_files(data, taught, tmp_path, monkeypatch):
    offline.store(tmp_path / "features", data, taught, OFFLINE, STILL, CPU)
    carried = fit(data, taught, OFFLINE, STILL, tmp_path)
    monkeypatch.setattr(features, "CARRIED_BYTES", 0)
    assert offline.load(tmp_path / "features", data, taught, OFFLINE, STILL).maps is None
    (tmp_path / "again").mkdir()
    (tmp_path / "again/features").symlink_to(tmp_path / "features")
    assert equal(carried.weights, fit(data, taught, OFFLINE, STILL, tmp_path / "again").weights)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"training.student.augmentation.policy": "randaugment"},
            "does not go with training.student.augmentation.policy r",
        ),
        ({"training.student.augmentation.mixup_alpha": 0.8}, "does not go with a training.student.augmentation that mixes"),
        ({"training.student.refit": True}, "does not go with training.student.refit"),
        ({"guidance.early.distillation": "hard"}, "offline stores the teacher's maps, not its answers"),
        ({"search.guidance": "early"}, "search.guidance is 'early', which is offline"),
    ],
)
def test_what_stored_maps_cannot_follow_is_refused(changes, line, params):
    with pytest.raises(UserError, match=line):
        config.parse(config.replaced(params, {"guidance.early.offline": True, **changes}))


def test_a_search_over_offline_is_refused(data, taught):
    with pytest.raises(UserError, match="guidance with offline needs the features"):
        runs.of("guided", "vit", 0, SL_VIT, STILL, data=data, guidance=OFFLINE, teacher=taught)

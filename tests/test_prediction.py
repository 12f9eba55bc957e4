"""A trained network gives the same answer to a picture file, to the prepared picture and through timm."""

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import pipeline.registry  # noqa: F401
from pipeline import models, prediction
from pipeline.config import UserError
from pipeline.data import batches, decode, loading, prepared, sources
from pipeline.data.augment.geometry import Frame
from pipeline.data.prepare import prepare
from pipeline.training.checkpoint import Model, load_model, save_model
from stages import predict
from tests import layouts
from tests.conftest import CLASSES, job, teacher

CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path) -> Model:
    """A fresh network of 8 px in a folder "model"."""
    torch.manual_seed(3)
    config = job().config
    save_model(tmp_path / "model", Model(config, models.build("vit", config["model_args"]).state_dict()))
    return load_model(tmp_path / "model", made_by="x")


@pytest.fixture
def photos(tmp_path):
    """Five pictures of many shapes, a text and a broken picture, in folders."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos/more").mkdir(parents=True)
    for index, shape in enumerate([(8, 8, 3), (30, 21, 3), (9, 40, 3), (16, 16), (8, 8, 3)]):
        folder = tmp_path / ("photos/more" if index == 4 else "photos")
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(folder / f"{index}.png")
    (tmp_path / "photos/broken.jpg").write_bytes(b"no picture")
    (tmp_path / "photos/notes.txt").write_text("no picture either")
    return tmp_path / "photos"


def predicted(model, paths, **changes):
    told = []
    how = {"top": 3, "batch_size": 2, "on_unreadable": lambda path, problem: told.append((path.name, problem)), **changes}
    return list(prediction.predict(prediction.Predictor(model, CPU), paths, **how)), told


def test_a_file_is_answered_as_timm_answers_its_pixels(model, photos, tmp_path):
    network = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    paths = sorted(photos.rglob("*.png"))
    found, told = predicted(model, paths)
    assert told == [] and [each.picture for each in found] == [str(path) for path in paths]
    for path, each in zip(paths, found, strict=True):
        pixels = torch.from_numpy(decode.pixels(path.read_bytes(), channels=3, image_size=8).copy())
        shares = network(((pixels.permute(2, 0, 1) / 255 - mean) / std)[None]).softmax(1)[0]
        by_class = dict(zip(each.labels, each.probabilities, strict=True))
        torch.testing.assert_close(torch.tensor([by_class[name] for name in CLASSES]), shares.detach())
        assert each.probabilities == sorted(each.probabilities, reverse=True)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_batches_change_no_answer(model, photos, batch_size):
    paths = sorted(photos.rglob("*.png"))
    one, other = predicted(model, paths)[0], predicted(model, paths, batch_size=batch_size)[0]
    for a, b in zip(one, other, strict=True):
        assert (a.picture, a.labels) == (b.picture, b.labels) and a.probabilities == pytest.approx(b.probabilities, abs=1e-5)


def test_what_cannot_be_read_is_told_and_the_rest_goes_on(model, photos):
    paths = [photos / "0.png", photos / "broken.jpg", photos / "gone.png", photos / "3.png"]
    found, told = predicted(model, paths)
    assert [each.picture for each in found] == [str(paths[0]), str(paths[3])]
    assert told == [("broken.jpg", "not a picture"), ("gone.png", "No such file or directory")]


@pytest.mark.parametrize(("stored", "side"), [(8, 8), (8, 12), (None, 8)])
def test_a_file_is_seen_as_evaluate_sees_it(stored, side, tmp_path):
    """In every pixel: of photographs of odd sizes, kept at their network's size, at another, or as they are."""
    rng = np.random.default_rng(0)
    for index, (height, width) in enumerate(rng.integers(9, 40, (24, 2))):
        file = tmp_path / f"raw/{index % 2}/{index}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8)).save(file, quality=95)
    settings, split = layouts.data(tmp_path / "raw", image_size=stored), tmp_path / "prepared/test.arrow"
    prepare(sources.read(settings), settings, tmp_path / "prepared")
    source = loading.open_source(loading.pictures(split, channels=3), CPU)
    evaluated = np.concatenate([images.numpy() for images, _ in batches.evaluation(source, side=side, batch_size=2)])

    trained = teacher()
    preprocessing = {**trained.config["pretrained_cfg"], "input_size": [3, side, side]}
    config = {**trained.config, "pretrained_cfg": preprocessing, "espalier": {"stored_size": stored}}
    predictor = prediction.Predictor(Model(config, trained.weights), CPU)
    files = [tmp_path / "raw" / name for name in prepared.read_split(split).names]
    assert np.array_equal(np.stack([predictor.pixels(file.read_bytes()) for file in files]), evaluated)


def test_pictures_go_through_the_stored_size(model, photos):
    """Where the prepared pictures are smaller than what the network sees, so is the way of a file."""
    config = {**model.config, "espalier": {"stored_size": 4}}
    shown = prediction.Predictor(Model(config, model.weights), CPU).pixels((photos / "1.png").read_bytes())
    stored = decode.pixels((photos / "1.png").read_bytes(), channels=3, image_size=4).copy()
    expected = Frame(8).show(torch.from_numpy(stored).permute(2, 0, 1)[None], None)[0].permute(1, 2, 0)
    assert np.array_equal(shown, expected.numpy())


def test_files_folders_patterns_and_lists_are_found(photos):
    every = ["0.png", "1.png", "2.png", "3.png", "broken.jpg", "4.png"]
    assert [path.name for path in prediction.find([str(photos)])] == every
    assert [path.name for path in prediction.find([str(photos / "[12].png")])] == ["1.png", "2.png"]
    assert [path.name for path in prediction.find(["-"], ["b.png\n", "\n", "a b.png\n"])] == ["b.png", "a b.png"]
    assert [path.name for path in prediction.find([str(photos / "notes.txt")])] == ["notes.txt"]
    with pytest.raises(UserError, match=r"nowhere/\*: no picture there; give files, folders, patterns such as"):
        prediction.find(["nowhere/*"])


def said(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["predict", *map(str, arguments)])
    predict.main()
    return capsys.readouterr()


def test_the_table_on_standard_output(model, photos, tmp_path, monkeypatch, capsys):
    done = said(monkeypatch, capsys, tmp_path / "model", photos, "--top", 2)
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert len(rows) == 10 and [row["rank"] for row in rows[:2]] == ["1", "2"] and rows[0]["label"] in CLASSES
    assert "broken.jpg: not a picture" in done.err and "skipped 1 of 6 pictures" in done.err
    lines = said(monkeypatch, capsys, tmp_path / "model", photos / "0.png", "--format", "json").out.splitlines()
    (only,) = map(json.loads, lines)
    assert sum(each["probability"] for each in only["classes"]) == pytest.approx(1, abs=1e-5) and len(only["classes"]) == 3


def test_saliency_is_written_beside_each_picture(model, photos, tmp_path, monkeypatch, capsys):
    said(monkeypatch, capsys, tmp_path / "model", photos / "0.png", photos / "3.png", "--saliency", tmp_path / "maps")
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["0001-0.png", "0002-3.png"]
    assert Image.open(tmp_path / "maps/0001-0.png").size == (16, 8)


def test_a_reader_that_leaves_is_no_trace(model, photos, tmp_path):
    many = "\n".join([str(photos / "0.png")] * 3000)  # more rows than a pipe holds
    command = [sys.executable, "-m", "stages.predict", tmp_path / "model", "-"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, **pipes)
    process.stdin.write(many)
    process.stdin.close()
    assert process.stdout.readline() == "picture,rank,label,probability\n"
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 1


def test_nothing_readable_is_an_error(model, photos, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="no picture could be read"):
        said(monkeypatch, capsys, tmp_path / "model", photos / "broken.jpg")

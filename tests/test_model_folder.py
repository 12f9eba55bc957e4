"""A trained network is a folder that we and timm read alike, and files are whole or absent."""

import json

import pytest
import timm
import torch

import pipeline.registry  # noqa: F401
from pipeline import files
from pipeline.config import UserError
from pipeline.identity import identity
from pipeline.training.checkpoint import Model, load_model, save_model
from tests.conftest import RESNET, SL_VIT, job, teacher


@pytest.mark.parametrize("network", [SL_VIT, RESNET])
def test_timm_loads_what_we_save(network, tmp_path):
    torch.manual_seed(3)
    made = job(network)
    model = Model(made.config, {})
    built = pipeline.models.build(model.name, made.config["model_args"]).eval()
    save_model(tmp_path / "m", Model(made.config, built.state_dict()))
    loaded = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(images), built(images))
    assert torch.equal(load_model(tmp_path / "m", made_by="x").network()(images), built(images))
    assert loaded.pretrained_cfg["label_names"] == ["cat", "dog", "emu"]
    assert loaded.pretrained_cfg["mean"] == (0.5, 0.5, 0.5) or loaded.pretrained_cfg["mean"] == [0.5, 0.5, 0.5]


def test_saving_twice_replaces_and_a_failure_leaves_the_old(tmp_path, monkeypatch):
    save_model(tmp_path / "m", teacher())
    before = (tmp_path / "m/model.safetensors").read_bytes()
    monkeypatch.setattr(files, "write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_model(tmp_path / "m", teacher())
    assert (tmp_path / "m/model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("file", "content"), [("config.json", "{"), ("model.safetensors", "short"), ("config.json", ""), ("config.json", "[1]")]
)
def test_a_damaged_folder_is_one_line(file, content, tmp_path):
    save_model(tmp_path / "m", teacher())
    (tmp_path / "m" / file).write_text(content)
    with pytest.raises(UserError, match="is damaged .*; `dvc repro teacher` makes it anew"):
        load_model(tmp_path / "m", made_by="teacher")


def test_a_missing_folder_names_its_stage(tmp_path):
    with pytest.raises(UserError, match="holds no trained network; `dvc repro teacher` makes it"):
        load_model(tmp_path / "m", made_by="teacher")


def test_equal_values_make_equal_files(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": 1, "a": 2})
    files.write_json(tmp_path / "b.json", dict(reversed(json.loads((tmp_path / "a.json").read_text()).items())))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_an_identity_follows_every_part(tmp_path, monkeypatch):
    first = identity(settings={"lr": 0.1}, fingerprint="f")
    assert first == identity(fingerprint="f", settings={"lr": 0.1})
    assert first != identity(settings={"lr": 0.2}, fingerprint="f") != identity(settings={"lr": 0.1}, fingerprint="g")
    monkeypatch.setattr("pipeline.identity.code_digest", lambda names: "other code")
    assert first != identity(settings={"lr": 0.1}, fingerprint="f")

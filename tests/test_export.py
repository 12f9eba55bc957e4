"""A trained network gives the same answers in every form that it is taken away in."""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import export, models
from pipeline.config import UserError
from pipeline.data import decode
from pipeline.networks import Swin
from pipeline.prediction import Predictor
from pipeline.training.checkpoint import Model, load_model, save_model
from tests.conftest import CLASSES, RESNET, SL_VIT, job

SWIN = Swin(model="swin", patch_size=1, depths=[1, 1], width=12, heads=[1, 2], spt=True, lsa=True)


def folder(path, network=SL_VIT):
    """A fresh network as a model folder."""
    torch.manual_seed(3)
    config = job(network).config
    save_model(path, Model(config, models.build(network.model, config["model_args"]).state_dict()))
    return path


def predictor(path):
    return Predictor(load_model(path, made_by="x"), torch.device("cpu"))


def photos():
    """Three picture files of different shapes, as bytes."""
    rng, contents = np.random.default_rng(0), []
    for shape in [(8, 8, 3), (30, 21, 3), (16, 16)]:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(file, "PNG")
        contents.append(file.getvalue())
    return contents


def answers(path):
    """What the model folder itself says of the photos, (3, K)."""
    own = predictor(path)
    return own.probabilities(np.stack([own.pixels(content) for content in photos()]))


@pytest.mark.parametrize("network", [SL_VIT, SWIN, RESNET], ids=["vit", "swin", "resnet"])
def test_a_torch_program_needs_only_pixels(network, tmp_path):
    made = folder(tmp_path / "model", network)
    export.to_torch(made, tmp_path / "network.pt2")
    program = torch.export.load(tmp_path / "network.pt2").module()
    pixels = np.stack([decode.pixels(content, channels=3, image_size=8) for content in photos()])
    for count in (1, 3):
        found = program(torch.from_numpy(pixels[:count])).detach().numpy()
        np.testing.assert_allclose(found, answers(made)[:count], atol=1e-5)


def test_mlflow_loads_what_was_exported(tmp_path):
    import pandas as pd
    from mlflow import pyfunc

    made = folder(tmp_path / "model")
    export.to_mlflow(made, tmp_path / "served")
    found = pyfunc.load_model(str(tmp_path / "served")).predict(pd.DataFrame({"picture": photos()}))
    assert list(found.columns) == CLASSES
    np.testing.assert_allclose(found.to_numpy(), answers(made), atol=1e-5)
    assert not [path for path in (tmp_path / "served").rglob("*") if path.suffix in (".pkl", ".pickle")], "nothing is pickled"


def test_what_is_no_model_leaves_nothing(tmp_path):
    for name, write in export.FORMATS.items():
        with pytest.raises(UserError, match="holds no trained network"):
            write(tmp_path / "nowhere", tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_mlflow_serves_pictures_over_http(tmp_path):
    made = folder(tmp_path / "model")
    export.to_mlflow(made, tmp_path / "served")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(tmp_path / "served")]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}/ping", server)
        records = [{"picture": base64.b64encode(content).decode()} for content in photos()]
        question = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"dataframe_records": records}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(question, timeout=60) as reply:
            rows = json.load(reply)["predictions"]
    finally:
        server.terminate()
        server.wait(30)
    np.testing.assert_allclose([[row[name] for name in CLASSES] for row in rows], answers(made), atol=1e-5)


def _wait_for(address, server):
    until = time.monotonic() + 120
    while True:
        try:
            return urllib.request.urlopen(address, timeout=5).read()
        except OSError:
            assert server.poll() is None and time.monotonic() < until, "the server did not start"
            time.sleep(0.5)

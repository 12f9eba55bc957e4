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
from pydantic import TypeAdapter

from pipeline import export, models, networks
from pipeline.config import UserError
from pipeline.data import decode
from pipeline.networks import Swin
from pipeline.prediction import Predictor
from pipeline.training.checkpoint import Model, load_model, model_config, save_model
from tests.conftest import CARD, CLASSES, RESNET, SL_VIT, job
from tests.test_models import NETWORKS, TINY

SWIN = Swin(model="swin", patch_size=2, depths=[1, 1], width=12, heads=[1, 2], spt=True, lsa=True)


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


def any_folder(path, name):
    """A network of test_models as a model folder, with weights and a head that tell its pictures apart."""
    network = TypeAdapter(networks.Network).validate_python(NETWORKS[name])
    card = {**CARD, "image_shape": [32, 32, 3]}
    arguments = models.arguments(network, image_shape=card["image_shape"], classes=len(CLASSES)) | TINY.get(name, {})
    torch.manual_seed(0)
    made = models.build(network.model, arguments).eval()
    with torch.no_grad():
        for weight in made.parameters() if network.tokens(32, 32) else ():  # fresh attention hardly looks at the picture
            weight.mul_(5 if weight.ndim > 1 else 1)
        features = made.forward_head(made.forward_features(torch.randn(16, 3, 32, 32)), pre_logits=True)
        heads = made.get_classifier()
        for head in heads if isinstance(heads, tuple) else [heads]:  # one more learns from the teacher's answers
            head.weight.copy_(torch.randn_like(head.weight) / (features.std(0).mean() * features.shape[1] ** 0.5))
            head.bias.copy_(-head.weight @ features.mean(0))
    save_model(path, Model(model_config(network.model, arguments, card, {}), made.state_dict()))
    return path


def onnx_session(path):
    """What runs the file of an ONNX program, as somebody would who has nothing of ours."""
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


FEW = ("sl_pit", "convit", "resnet_cifar")
slow = pytest.mark.slow


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FEW else slow) for name in NETWORKS])
def test_an_onnx_program_answers_as_the_network_does(name, tmp_path):
    made = any_folder(tmp_path / "model", name)
    export.to_onnx(made, tmp_path / "network.onnx")
    session, rng = onnx_session(tmp_path / "network.onnx"), np.random.default_rng(1)
    assert session.get_modelmeta().custom_metadata_map["classes"].split("\n") == CLASSES
    assert [session.get_inputs()[0].shape, session.get_outputs()[0].shape] == [["batch", 32, 32, 3], ["batch", 3]]
    for count in (1, 2, 5):
        pixels = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
        (found,) = session.run(None, {"pixels": pixels})
        np.testing.assert_allclose(found, predictor(made).probabilities(pixels), atol=1e-4)
        assert found.shape == (count, 3) and (count == 1 or np.ptp(found, axis=0).max() > 0.01), "pictures differ"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "network.onnx"]


def test_an_onnx_program_with_other_answers_is_one_line(tmp_path):
    for name in ("resnet_cifar", "vit"):
        any_folder(tmp_path / name, name)
    export.to_onnx(tmp_path / "vit", tmp_path / "vit.onnx")
    with pytest.raises(UserError, match=r"^ONNX Runtime's probabilities differ from the network's by 0.\d+, more than 0.0001"):
        export._refuse_other_answers(tmp_path / "vit.onnx", predictor(tmp_path / "resnet_cifar"))


def torch_runs(path):
    program = torch.export.load(path).module()
    return lambda pixels: program(torch.from_numpy(pixels)).detach().numpy()


def onnx_runs(path):
    session = onnx_session(path)
    return lambda pixels: session.run(None, {"pixels": pixels})[0]


@pytest.mark.parametrize(("form", "load"), [("torch", torch_runs), ("onnx", onnx_runs)])
@pytest.mark.parametrize("network", [SL_VIT, SWIN, RESNET], ids=["vit", "swin", "resnet"])
def test_a_program_needs_only_pixels(network, form, load, tmp_path):
    made = folder(tmp_path / "model", network)
    export.FORMATS[form](made, tmp_path / "network")
    run = load(tmp_path / "network")
    pixels = np.stack([decode.pixels(content, channels=3, image_size=8) for content in photos()])
    for count in (1, 3):
        np.testing.assert_allclose(run(pixels[:count]), answers(made)[:count], atol=1e-5)


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

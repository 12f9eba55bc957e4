"""Checkpoints in an object store, held against a local server that speaks S3 (moto)."""

import logging
import os
import re
import socket
import threading
from contextlib import contextmanager

import pytest
import torch
from moto.server import ThreadedMotoServer

from pipeline import checkpoints, config, distributed
from pipeline.checkpoints import Checkpoints
from pipeline.config import UserError
from tests.conftest import cluster, job, numbers, recipe
from tests.driver import start
from tests.nodes import nodes

SECRETS = {"AWS_ACCESS_KEY_ID": "espalier", "AWS_SECRET_ACCESS_KEY": "hidden"}
ELSEWHERE = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def address():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield ":".join(map(str, server.get_host_and_port()))
    server.stop()


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    for name, value in (SECRETS | ELSEWHERE).items():
        monkeypatch.setenv(name, value)


def uri(address, bucket, *options):
    return f"s3://{bucket}/runs?" + "&".join(["scheme=http", f"endpoint_override={address}", "region=us-east-1", *options])


@pytest.fixture
def place(address, request):
    return uri(address, request.node.name.split("[")[0].replace("_", "-")[:60], "allow_bucket_creation=true")


def listed(place):
    files, folder = checkpoints._open(place)
    return {found.base_name for found in files.get_file_info(checkpoints.fs.FileSelector(folder, allow_not_found=True))}


def fit(where, identity="run", *, workers=0, stop_after=None, told=None):
    def on_epoch(row):
        if told is not None:
            told.append(row["epoch"])
        if row["epoch"] == stop_after:
            raise Interrupted

    made = cluster(num_workers=workers, cpus_per_worker=1, **where)
    listener = distributed.Listener(epoch=on_epoch)
    return distributed.fit(job(training=recipe(duration="4 epochs")), made, identity=identity, listener=listener)


# What a place is called


@pytest.mark.parametrize(
    ("place", "below"),
    [
        ("s3://bucket/folder", "s3://bucket/folder/run/checkpoints"),
        ("s3://bucket/folder/", "s3://bucket/folder/run/checkpoints"),
        ("s3://bucket/folder?region=x&scheme=http", "s3://bucket/folder/run/checkpoints?region=x&scheme=http"),
        ("s3://bucket?region=x", "s3://bucket/run/checkpoints?region=x"),
        ("/some/where?", "/some/where?/run/checkpoints"),
    ],
)
def test_the_options_of_a_uri_stay_at_its_end(place, below):
    assert checkpoints.inside(place, "run", "checkpoints") == below


def test_a_folder_is_the_projects_wherever_a_worker_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkpoints.inside("kept", "run") == str(tmp_path / "kept/run")


def test_params_hold_no_password(params):
    params["cluster"]["checkpoints"] = "s3://key:hidden@bucket/folder"
    with pytest.raises(UserError, match="^params.yaml: cluster: checkpoints holds a password before its @") as line:
        config.parse(params)
    assert "hidden" not in str(line.value) and "\n" not in str(line.value)
    params["cluster"]["checkpoints"] = "abfs://container@account.dfs.core.windows.net/folder"  # no password, though it has an @
    config.parse(params)


# What it does


def test_what_a_folder_does_a_bucket_does(place):
    kept = Checkpoints(checkpoints.inside(place, "run", "checkpoints"))
    kept.check()
    assert list(kept.newest_first()) == []
    for epoch in range(1, 12):
        kept.write(epoch, str(epoch).encode())
    assert list(kept.newest_first()) == [b"11", b"10"]
    assert listed(checkpoints.inside(place, "run", "checkpoints")) == {"epoch-00010.pt", "epoch-00011.pt"}
    kept.delete()
    assert list(kept.newest_first()) == [] and listed(place) <= {"run"}


def equal(first, second):
    same = all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)
    return same and numbers(first.history) == numbers(second.history)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_goes_on_from_a_bucket_with_the_same_weights(place, tmp_path, workers, one_session):
    told = []
    with one_session(workers):
        unbroken = fit({"scratch": str(tmp_path / "a")}, "unbroken", workers=workers)
        where = {"scratch": str(tmp_path / "b"), "checkpoints": place}
        with pytest.raises(Interrupted):
            fit(where, workers=workers, stop_after=2)
        assert "epoch-00002.pt" in listed(checkpoints.inside(place, "run", "checkpoints"))
        assert not (tmp_path / "b/run/checkpoints").exists()
        resumed = fit(where, workers=workers, told=told)
    assert told == list(range(5 - len(told), 5)) and len(told) <= 2  # nothing is repeated
    assert equal(unbroken, resumed)
    assert listed(place) <= {"run"} and listed(checkpoints.inside(place, "run", "checkpoints")) == set()


@pytest.fixture
def one_session():
    """One Ray for several trainings, where there are workers."""

    @contextmanager
    def session(workers):
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        with distributed.ray_session() if workers else contextmanager(lambda: iter([None]))():
            yield
        torch.set_num_threads(before)

    return session


# What a person can put right


@pytest.mark.parametrize(
    ("bucket", "without", "why"),
    [
        ("nowhere", (), "Bucket 'nowhere' not found"),
        ("there", tuple(SECRETS), "ACCESS_DENIED"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_one_line_before_anything_is_trained(
    address, tmp_path, monkeypatch, bucket, without, why
):
    Checkpoints(uri(address, "there", "allow_bucket_creation=true")).check()
    for name in without:
        monkeypatch.delenv(name)
    told = []
    where = {"scratch": str(tmp_path), "checkpoints": uri(address, bucket, "tls_ca_file_path=hidden")}
    with pytest.raises(
        UserError, match=rf"^the place of the checkpoints, s3://{bucket}/runs/run/checkpoints \(.*{why}"
    ) as error:
        fit(where, told=told)
    assert told == [] and "\n" not in str(error.value) and "hidden" not in str(error.value)


def test_an_option_that_no_store_knows_is_one_line_without_the_options_of_the_uri():
    with pytest.raises(
        UserError, match=r"^cluster.checkpoints 's3://bucket/runs': .*'nosuch'; give a folder, or a URI"
    ) as line:
        Checkpoints("s3://bucket/runs?region=x&nosuch=hidden").check()
    assert "hidden" not in str(line.value)


def test_a_store_that_is_away_is_asked_a_few_times_and_not_for_minutes():
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as hangs_up:

        def serve():
            while True:
                try:
                    hangs_up.accept()[0].close()
                except OSError:
                    return
                asked.append(1)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(UserError, match="cannot be used from .*NETWORK_CONNECTION"):
            Checkpoints(uri(f"127.0.0.1:{hangs_up.getsockname()[1]}", "bucket")).check()
    assert 1 <= len(asked) <= 10


@pytest.mark.slow
def test_nodes_that_do_not_share_the_place_are_one_line_and_nothing_is_trained(address, place, tmp_path, monkeypatch):
    for name in SECRETS:
        monkeypatch.delenv(name)
    mistakes = {place: "cannot be used from .*ACCESS_DENIED", "fsspec+memory:///kept": "all nodes must share it"}
    with nodes(1) as several:
        several.say("add 1 " + " ".join(f"{name}={value}" for name, value in SECRETS.items()))
        for where, mistake in mistakes.items():
            driver = start("run", tmp_path, epochs=2, address=several.address, num_workers=1, checkpoints=where)
            _chosen, *told = driver.communicate()[0].splitlines()
            assert driver.returncode == 1 and len(told) == 1 and "hidden" not in told[0]
            assert re.match(f"error: the place of the checkpoints, .*{mistake}", told[0])

"""MLflow on SQLite: one run per identity, every epoch once, and a failure that stops nothing."""

import logging
import os
import signal
import time

import pytest
from mlflow import MlflowClient

from pipeline import tracking
from pipeline.config import Tracking

TAGS = {"kind": "unguided", "name": "vit", "seed": "0"}


def settings(tmp_path) -> Tracking:
    return Tracking(enabled=True, experiment="x", folder=str(tmp_path / "mlruns"))


def row(epoch: int) -> dict:
    return {"epoch": epoch, "images_seen": 10 * epoch, "val_loss": 1.0 / epoch, "hardware": "abacus"}


def opened(tmp_path, identity="a"):
    return tracking.run(settings(tmp_path), identity=identity, name="unguided/vit/0", tags=TAGS, params={"a": {"b": 1}})


def client(tmp_path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")


def runs(tmp_path, query=""):
    experiment = client(tmp_path).get_experiment_by_name("x")
    return client(tmp_path).search_runs([experiment.experiment_id], query)


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_an_interrupted_run_goes_on_as_the_same_run_with_every_epoch_once(tmp_path):
    with pytest.raises(KeyboardInterrupt), opened(tmp_path) as run:
        run.epoch(row(1))
        run.epoch(row(2))
        raise KeyboardInterrupt
    assert [run.info.status for run in runs(tmp_path)] == ["KILLED"]
    with opened(tmp_path) as run:
        for epoch in (4, 1, 2, 3, 4):  # the third was kept but no longer told; a training tells all again at its end
            run.epoch(row(epoch))
        run.facts({"test_accuracy": 0.5})
    (run,) = runs(tmp_path)
    history = client(tmp_path).get_metric_history(run.info.run_id, "val/loss")
    assert sorted(point.step for point in history) == [10, 20, 30, 40]
    assert run.info.status == "FINISHED" and run.info.run_name == "unguided/vit/0"
    assert run.data.params == {"a.b": "1"} and run.data.metrics["test/accuracy"] == 0.5
    assert {**TAGS, "identity": "a"}.items() <= run.data.tags.items() and run.data.tags["mlflow.source.git.commit"]


def test_a_run_lasts_as_long_as_its_training_whatever_is_added_later(tmp_path):
    with pytest.raises(KeyboardInterrupt), opened(tmp_path):
        raise KeyboardInterrupt
    killed = runs(tmp_path)[0].info.end_time
    time.sleep(0.01)
    with opened(tmp_path) as run:
        run.epoch(row(1))
    finished = runs(tmp_path)[0].info.end_time
    time.sleep(0.01)
    with opened(tmp_path) as run:
        run.facts({"test_accuracy": 0.5})
    (run,) = runs(tmp_path)
    assert killed < finished == run.info.end_time and run.info.status == "FINISHED" and run.data.metrics["test/accuracy"] == 0.5


def test_an_interruption_in_the_middle_of_a_call_lets_it_end(tmp_path, caplog):
    def interrupted(client):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)  # the main thread has been interrupted by now
        client.log_metric(run.id, "late", 1.0)

    with pytest.raises(KeyboardInterrupt), opened(tmp_path) as run:
        run._try(interrupted)
    (found,) = runs(tmp_path)
    assert (
        found.info.status == "KILLED"
        and found.data.metrics["late"] == 1.0
        and not [each for each in caplog.records if each.levelno > logging.INFO]
    )


def test_another_identity_is_another_run_and_failures_are_told(tmp_path):
    with pytest.raises(ValueError), opened(tmp_path):
        raise ValueError
    with opened(tmp_path, "b"):
        pass
    assert sorted(run.info.status for run in runs(tmp_path)) == ["FAILED", "FINISHED"]


def test_artifacts_lie_beside_the_store(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    with opened(tmp_path) as run:
        run.artifacts(tmp_path / "model", "model")
    assert len(list((tmp_path / "mlruns/artifacts").rglob("model/config.json"))) == 1


def test_a_child_lies_under_its_parent_and_is_found_again(tmp_path):
    with opened(tmp_path) as parent:
        for status in ("KILLED", "FINISHED"):
            about = {"identity": "a-1", "name": "trial 1", "tags": {"kind": "trial"}, "params": {"students.vit.depth": 2}}
            child = tracking.child(settings(tmp_path), parent, **about)
            child.epoch(row(1))
            child.tag("status", "stopped")
            child.end(status)
        (found,) = runs(tmp_path, f"tags.mlflow.parentRunId = '{parent.id}'")
    assert found.info.run_name == "trial 1" and found.info.status == "FINISHED"
    assert found.data.params == {"students.vit.depth": "2"} and found.data.tags["status"] == "stopped"
    history = client(tmp_path).get_metric_history(found.info.run_id, "val/loss")
    assert [point.step for point in history] == [10]


def test_a_child_of_a_run_that_is_not_kept_is_not_kept(tmp_path):
    off = Tracking(enabled=False, experiment="x", folder=str(tmp_path / "mlruns"))
    with tracking.run(off, identity="a", name="n", tags={}, params={}) as parent:
        tracking.child(off, parent, identity="b", name="n", tags={}, params={}).epoch(row(1))
    assert not (tmp_path / "mlruns").exists()


def test_marks_are_on_the_named_runs_alone(tmp_path):
    for identity in "abc":
        with opened(tmp_path, identity):
            pass
    tracking.mark(settings(tmp_path), ["a", "b"], tag="in_report")
    tracking.mark(settings(tmp_path), ["b", "c"], tag="in_report")
    assert {run.data.tags["identity"] for run in runs(tmp_path, "tags.in_report = 'yes'")} == {"b", "c"}


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/nowhere/mlflow.db"])
def test_a_store_that_fails_stops_nothing_and_is_said(tmp_path, uri, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with opened(tmp_path) as run:
        run.epoch(row(1))
    assert "tracking failed" in caplog.text and len(caplog.text.splitlines()) == 1


def test_a_store_that_fails_on_the_way_stops_nothing_and_is_said_once(tmp_path, caplog):
    with opened(tmp_path) as run:
        run.epoch(row(1))
        (tmp_path / "mlruns/mlflow.db").write_bytes(b"overwritten")
        for epoch in (2, 3):
            run.epoch(row(epoch))
    assert caplog.text.count("tracking stopped") == 1


def test_switched_off_it_keeps_nothing(tmp_path):
    off = Tracking(enabled=False, experiment="x", folder=str(tmp_path / "mlruns"))
    with tracking.run(off, identity="a", name="n", tags={}, params={}) as run:
        run.epoch(row(1))
        run.facts({"a": 1.0})
    assert not (tmp_path / "mlruns").exists()


def test_the_registry_points_to_the_best_once(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/config.json").write_text("{}")
    for identity in ("a", "b"):
        with opened(tmp_path, identity) as run:
            run.artifacts(tmp_path / "folder", "model")
    for identity in ("a", "a", "b"):
        tracking.register(settings(tmp_path), identity, alias="best")
    assert {int(found.version) for found in client(tmp_path).search_model_versions("name = 'x'")} == {1, 2}
    best = client(tmp_path).get_model_version_by_alias("x", "best")
    assert client(tmp_path).get_run(best.run_id).data.tags["identity"] == "b"
    assert client(tmp_path).get_model_version_download_uri("x", best.version).endswith("/artifacts/model")
    tracking.register(settings(tmp_path), "unknown", alias="best")
    assert client(tmp_path).get_model_version_by_alias("x", "best").version == best.version

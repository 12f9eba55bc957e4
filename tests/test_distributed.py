"""Ray changes where a training runs, not what it computes. Each test starts a real Ray on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from pipeline import distributed
from pipeline.config import Guidance, UserError
from pipeline.training.checkpoint import load_model
from tests.conftest import cluster, job, numbers, recipe, teacher

EARLY = Guidance(beta=2.5, schedule="linear", end_fraction=0.5)


class Interrupted(Exception):
    pass


def fit(made, scratch, *, workers, stop_after=None, told=None, **changes):
    def on_epoch(row):
        if told is not None:
            told.append(row["epoch"])
        if row["epoch"] == stop_after:
            raise Interrupted

    where = cluster(num_workers=workers, cpus_per_worker=1, scratch=str(scratch), **changes)
    return distributed.fit(made, where, identity="run", listener=distributed.Listener(epoch=on_epoch))


def close(first, second, tolerance):
    """The same curves within a relative tolerance."""
    for mine, other in zip(numbers(first.history), numbers(second.history), strict=True):
        assert mine == pytest.approx(other, rel=tolerance)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_ray_equals_this_process_and_goes_on_after_an_interruption(tmp_path):
    made, told = job(guidance=EARLY, teacher=teacher(), training=recipe(epochs=4)), []
    here = fit(made, tmp_path / "here", workers=0)
    with pytest.raises(Interrupted):
        fit(made, tmp_path / "ray", workers=1, stop_after=2)
    assert (tmp_path / "ray/run/checkpoints").is_dir()
    resumed = fit(made, tmp_path / "ray", workers=1, told=told)
    assert told == list(range(5 - len(told), 5)) and len(told) <= 2  # nothing is repeated
    close(here, resumed, 1e-6)
    assert all(torch.allclose(here.weights[name], resumed.weights[name], atol=1e-6) for name in here.weights)
    assert not (tmp_path / "ray/run/checkpoints").exists() and (tmp_path / "ray/run/finished").is_dir()


def test_a_killed_worker_is_replaced_and_nothing_shows(tmp_path):
    made, told, killed = job(training=recipe(epochs=40)), [], []

    def on_epoch(row):
        told.append(row["epoch"])
        if row["epoch"] >= 10 and not killed:
            killed.extend(each for each in psutil.Process().children(recursive=True) if "RayTrainWorker" in each.name())
            for worker in killed:
                worker.kill()

    where = cluster(num_workers=2, cpus_per_worker=1, scratch=str(tmp_path), max_failures=1)
    broken = distributed.fit(made, where, identity="broken", listener=distributed.Listener(epoch=on_epoch))
    assert len(killed) == 2
    unbroken = distributed.fit(made, where, identity="unbroken", listener=distributed.Listener())
    assert numbers(broken.history) == numbers(unbroken.history)
    assert all(torch.equal(broken.weights[name], unbroken.weights[name]) for name in broken.weights)
    assert told[0] == 1 and told[-1] == 40 and len(told) <= 41  # at most the epoch that was being written is told again


def test_two_workers_have_the_loss_curve_of_one(tmp_path):
    made = job(guidance=EARLY, teacher=teacher(), training=recipe(epochs=4, warmup_epochs=1))
    close(fit(made, tmp_path / "one", workers=0), fit(made, tmp_path / "two", workers=2), 1e-4)


@pytest.mark.slow
def test_the_number_of_workers_may_change_on_the_way(tmp_path):
    made = job(guidance=EARLY, teacher=teacher(), training=recipe(epochs=30))
    here, stops = fit(made, tmp_path / "here", workers=0), {2: 8, 0: 16, 1: None}
    for workers, stop in stops.items():
        if stop is None:
            moved = fit(made, tmp_path / "moved", workers=workers)
        else:
            with pytest.raises(Interrupted):
                fit(made, tmp_path / "moved", workers=workers, stop_after=stop)
    assert any(row["hardware"].startswith("2 x") for row in moved.history)
    close(here, moved, 1e-3)


def test_what_a_worker_cannot_do_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cluster.num_workers 16 with 8 CPU each would wait for ever: Ray has"):
        distributed.fit(
            job(),
            cluster(num_workers=16, cpus_per_worker=8, scratch=str(tmp_path)),
            identity="run",
            listener=distributed.Listener(),
        )
    with pytest.raises(UserError, match="batch_size 71 exceeds the 70 training pictures"):
        fit(job(training=recipe(batch_size=71)), tmp_path, workers=1)


DRIVER = """
import sys
from pathlib import Path
from pipeline import distributed
from pipeline.training.checkpoint import Model, save_model
from tests.conftest import cluster, job

made = job()
where = cluster(num_workers=1, cpus_per_worker=1, scratch=sys.argv[1])
trained = distributed.fit(made, where, identity="run", listener=distributed.Listener())
save_model(Path(sys.argv[1], "model"), Model(made.config, trained.weights))
"""


@pytest.mark.slow
def test_a_driver_joins_the_cluster_that_ray_address_names_which_need_not_have_the_code(tmp_path):
    root, address = Path(__file__).parents[1], "127.0.0.1:6398"
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    head = ["ray", "start", "--head", "--port", "6398", "--num-cpus", "2", "--include-dashboard=false", "--disable-usage-stats"]
    (tmp_path / "elsewhere").mkdir()
    subprocess.run(head, cwd=tmp_path / "elsewhere", env=environment, check=True, capture_output=True)
    try:
        driver = [sys.executable, "-c", DRIVER, str(tmp_path / "ray")]
        subprocess.run(driver, cwd=root, env={**environment, "RAY_ADDRESS": address}, check=True)
        nodes = subprocess.run(["ray", "status", "--address", address], env=environment, check=True, capture_output=True)
        assert b"1 node_" in nodes.stdout  # it was joined, not ended
    finally:
        subprocess.run(["ray", "stop"], env=environment, check=True, capture_output=True)
    weights = load_model(tmp_path / "ray/model", made_by="this test").weights
    here = fit(job(), tmp_path / "here", workers=0)
    assert all(torch.allclose(here.weights[name], weights[name], atol=1e-6) for name in weights)

"""Ray changes where a training runs, not what it computes. Each test starts a real Ray on this machine."""

import json
from itertools import groupby

import psutil
import pytest
import torch
from safetensors.torch import load_file

from pipeline import distributed
from pipeline.config import Guidance, UserError
from tests.conftest import cluster, job, numbers, recipe, teacher
from tests.driver import start
from tests.nodes import nodes

EARLY = Guidance(beta=2.5, schedule="linear", end="50 %")


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
    made, told = job(guidance=EARLY, teacher=teacher(), training=recipe(duration="4 epochs")), []
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
    made, told, killed = job(training=recipe(duration="40 epochs")), [], []

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
    made = job(guidance=EARLY, teacher=teacher(), training=recipe(duration="4 epochs", warmup="1 epochs"))
    close(fit(made, tmp_path / "one", workers=0), fit(made, tmp_path / "two", workers=2), 1e-4)


@pytest.mark.slow
def test_the_number_of_workers_may_change_on_the_way(tmp_path):
    made = job(guidance=EARLY, teacher=teacher(), training=recipe(duration="30 epochs"))
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


# Several nodes, each with a raylet of its own on this machine; the driver is a process of its own


def weights(scratch, identity):
    return load_file(scratch / identity / "finished" / distributed.WEIGHTS)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def wait_for(process, epoch):
    """Read what the driver prints until that epoch, or a later one, has ended."""
    for line in process.stdout:
        if line.startswith("epoch") and int(line.split()[1]) >= epoch:
            return
    raise AssertionError(f"the driver ended before epoch {epoch}")


def ended_well(process):
    told = process.communicate()[0]
    assert process.returncode == 0, told
    return told


@pytest.mark.slow
def test_a_training_that_loses_a_node_or_its_driver_ends_with_the_same_weights(tmp_path):
    with nodes(1, 1, 1) as several:
        where = {"epochs": 60, "address": several.address, "num_workers": 2, "placement": "spread"}
        chosen = ended_well(start("unbroken", tmp_path, **where))
        assert chosen.startswith("2 workers with 1 CPU each (spread); Ray has 3 CPU on 4 nodes, room for 1 at once\n")

        broken = start("no-driver", tmp_path, **where)
        wait_for(broken, 20)
        broken.kill()
        broken.wait()
        resumed = ended_well(start("no-driver", tmp_path, **where))
        assert int(resumed.splitlines()[1].split()[1]) >= 20  # it was not begun anew

        broken = start("no-node", tmp_path, **where)
        wait_for(broken, 20)
        several.say("remove")
        ended_well(broken)
        for identity in ("no-driver", "no-node"):
            assert equal(weights(tmp_path, "unbroken"), weights(tmp_path, identity))


@pytest.mark.slow
def test_a_training_that_lost_too_many_nodes_says_that_it_waits_and_goes_on_with_a_new_one(tmp_path):
    with nodes(1, 1) as several:
        where = {"epochs": 60, "address": several.address, "num_workers": 2, "placement": "spread"}
        training = start("waits", tmp_path, **where)
        wait_for(training, 10)
        several.say("remove")
        assert any(line.startswith("waits for a node: Ray has 1 CPU on 2 nodes left") for line in training.stdout)
        several.say("add 1")
        ended_well(training)
    history = json.loads((tmp_path / "waits/finished" / distributed.HISTORY).read_text())
    assert [row["epoch"] for row in history] == list(range(1, 61))


@pytest.mark.slow
def test_two_nodes_have_the_loss_curve_of_one_process(tmp_path):
    with nodes(1, 1) as two:
        ended_well(start("two", tmp_path, epochs=4, address=two.address, num_workers=2, placement="spread"))
    here = fit(job(training=recipe(duration="4 epochs")), tmp_path / "here", workers=0)
    close(here, distributed._read(tmp_path / "two/finished"), 1e-4)


@pytest.mark.slow
def test_an_elastic_training_grows_with_its_cluster_and_goes_on_with_less(tmp_path):
    with nodes(1) as growing:
        where = {"address": growing.address, "num_workers": 2, "min_workers": 1, "max_failures": 9}
        training = start("elastic", tmp_path, epochs=1000, **where)
        wait_for(training, 10)
        growing.say("add 1")
        wait_for(training, 700)
        growing.say("remove")
        ended_well(training)
    history = json.loads((tmp_path / "elastic/finished" / distributed.HISTORY).read_text())
    assert [row["epoch"] for row in history] == list(range(1, 1001))
    assert [two for two, _ in groupby(row["hardware"].startswith("2 x") for row in history)] == [False, True, False]


@pytest.mark.slow
def test_a_place_that_the_node_of_the_first_worker_cannot_use_is_one_line_and_nothing_is_trained(tmp_path):
    (tmp_path / "file").write_text("in the way")
    told = []
    with pytest.raises(UserError, match="^the place of the checkpoints, .*file/run/checkpoints") as line:
        fit(job(), tmp_path / "runs", workers=2, told=told, checkpoints=str(tmp_path / "file"))
    assert told == [] and "\n" not in str(line.value)


@pytest.mark.slow
def test_a_place_that_is_lost_on_the_way_ends_all_workers_with_one_line(tmp_path):
    place = tmp_path / "run/checkpoints"

    def on_epoch(row):
        if row["epoch"] == 3:
            place.rename(tmp_path / "away")
            place.write_text("in the way")

    where = cluster(num_workers=2, cpus_per_worker=1, scratch=str(tmp_path))
    listener = distributed.Listener(epoch=on_epoch)
    with pytest.raises(UserError, match=r"^no checkpoint of epoch \d+ in .*run/checkpoints \("):
        distributed.fit(job(training=recipe(duration="400 epochs")), where, identity="run", listener=listener)

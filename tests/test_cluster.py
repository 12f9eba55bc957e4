"""Many trainings share a cluster: what each worker gets, in which order they go, and where their checkpoints lie."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from pyarrow import fs
from ruamel.yaml import YAML

from pipeline import checkpoints, config, distributed, scheduling
from pipeline.checkpoints import Checkpoints
from pipeline.config import Experiment, UserError
from pipeline.together import Skipped, Task, together
from stages import train_all
from tests.conftest import cluster, job
from tests.nodes import ENVIRONMENT, nodes
from tests.test_pipeline import change, copy_of_the_project, run

NODES = st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 16).map(float), "GPU": st.integers(0, 8).map(float)}), min_size=1)
SHARES = st.fixed_dictionaries({"CPU": st.sampled_from([1.0, 2.0, 3.0]), "GPU": st.sampled_from([0.1, 0.25, 0.5, 1.0, 2.0])})


# What each worker gets


@given(NODES, SHARES)
def test_as_many_workers_have_room_as_can_be_put_on_nodes_one_by_one(nodes, each):
    placed = 0
    for node in nodes:
        left = {name: round(1000 * amount) for name, amount in node.items()}
        while all(left[name] >= round(1000 * share) for name, share in each.items()):
            left = {name: left[name] - round(1000 * share) for name, share in each.items()}
            placed += 1
    assert scheduling.workers_with_room(nodes, each) == placed


@given(NODES, st.integers(1, 6), st.sampled_from([None, 1, 3]), st.sampled_from([None, 0.5, 1.0]), st.booleans())
def test_what_is_given_has_room_or_is_refused(nodes, workers, cpus, gpus, alone):
    gpus = gpus if workers == 1 else None
    wanted = cluster(num_workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus, use_gpu="auto")
    try:
        each = scheduling.worker(wanted, nodes, alone=alone)
    except UserError:
        return
    assert scheduling.workers_with_room(nodes, each) >= workers
    assert scheduling.trainings_at_once(wanted, nodes, each) * workers <= scheduling.workers_with_room(nodes, each)


GPU_BOX, CPU_NODE = {"CPU": 64.0, "GPU": 8.0}, {"CPU": 4.0}


@pytest.mark.parametrize(
    ("settings", "nodes", "alone", "each", "at_once"),
    [
        ({"num_workers": 1}, [CPU_NODE], True, {"CPU": 4}, 1),
        ({"num_workers": 2}, [CPU_NODE], True, {"CPU": 2}, 1),
        ({"num_workers": 2}, [CPU_NODE], False, {"CPU": 1}, 2),
        ({"num_workers": 1}, [GPU_BOX, CPU_NODE], False, {"CPU": 8, "GPU": 1}, 8),
        ({"num_workers": 1, "gpus_per_worker": 0.25}, [GPU_BOX], False, {"CPU": 2, "GPU": 0.25}, 32),
        ({"num_workers": 4}, [GPU_BOX, GPU_BOX], False, {"CPU": 8, "GPU": 1}, 4),
        ({"num_workers": 1, "use_gpu": False}, [GPU_BOX], False, {"CPU": 1}, 64),
        ({"num_workers": 2, "gpus_per_worker": 2.0}, [GPU_BOX], False, {"CPU": 16, "GPU": 2}, 2),
    ],
)
def test_what_is_chosen_where_nothing_is_said(settings, nodes, alone, each, at_once):
    wanted = cluster(**{"use_gpu": "auto", **settings})
    assert scheduling.worker(wanted, nodes, alone=alone) == each
    assert scheduling.trainings_at_once(wanted, nodes, each) == at_once


def test_the_choice_is_one_line():
    wanted = cluster(num_workers=2, min_workers=1, placement="spread")
    line = scheduling.choice(wanted, [CPU_NODE, CPU_NODE], {"CPU": 1.0})
    assert line == "1 to 2 workers with 1 CPU each (spread); Ray has 8 CPU on 2 nodes, room for 4 at once"


@given(NODES, SHARES, st.integers(1, 6))
def test_a_training_lacks_room_just_where_its_workers_do_not_fit(nodes, each, workers):
    line = scheduling.lack(cluster(num_workers=workers), nodes, each)
    assert bool(line) == (scheduling.workers_with_room(nodes, each) < workers)


def test_a_lack_of_room_is_one_line():
    line = scheduling.lack(cluster(num_workers=2), [{"CPU": 1.0}, {}], {"CPU": 1.0})
    assert line == "waits for a node: Ray has 1 CPU on 2 nodes left, too little for 2 workers with 1 CPU each"


def test_a_worker_that_no_single_node_can_hold_is_refused_in_one_line():
    with pytest.raises(UserError, match="cluster.num_workers 1 with 6 CPU each would wait for ever: Ray has 8 CPU on 2 nodes"):
        scheduling.worker(cluster(num_workers=1, cpus_per_worker=6), [CPU_NODE, CPU_NODE], alone=False)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"num_workers": 2, "min_workers": 3}, "min_workers 3 is above num_workers 2"),
        ({"gpus_per_worker": 1.5}, "gpus_per_worker 1.5 is neither a part of one GPU nor a whole number of them"),
        ({"num_workers": 2, "gpus_per_worker": 0.5}, "gpus_per_worker 0.5 needs num_workers 1: "),
    ],
)
def test_cluster_settings_that_contradict_each_other_are_one_line(params, settings, line):
    params["cluster"] |= settings
    with pytest.raises(UserError, match=f"^params.yaml: cluster.*{line}"):
        config.parse(params)


def test_a_batch_divides_among_every_number_of_workers_that_an_elastic_training_may_have(params):
    params["cluster"] |= {"num_workers": 4, "min_workers": 2}
    with pytest.raises(UserError, match="batch_size 64 does not divide among cluster.num_workers 2 to 4; 60 or 72 would"):
        config.parse(params)
    params["training"]["student"]["batch_size"] = params["training"]["teacher"]["batch_size"] = 72
    config.parse(params)


# In which order they go


@given(st.lists(st.tuples(st.integers(-1, 4), st.booleans()), max_size=8), st.integers(1, 4))
def test_all_is_done_within_the_room_after_what_it_needs_and_one_failure_stops_no_other(plan, at_once):
    lock, running, most, order = threading.Lock(), set(), 0, []

    def action(name, fails):
        nonlocal most
        with lock:
            running.add(name)
            most = max(most, len(running))
        with lock:
            running.remove(name)
            order.append(name)
        if fails:
            raise ValueError(name)

    names = [str(index) for index in range(len(plan))]
    needs = {name: str(after) if 0 <= after < int(name) else None for name, (after, _) in zip(names, plan, strict=True)}
    tasks = {
        name: Task(lambda name=name, fails=fails: action(name, fails), needs[name])
        for name, (_, fails) in zip(names, plan, strict=True)
    }
    failed = together(tasks, room=lambda: at_once)
    own = {name for name, (_, fails) in zip(names, plan, strict=True) if fails}
    skipped = {name for name in failed if isinstance(failed[name], Skipped)}
    assert most <= at_once
    assert set(order) == set(names) - skipped and len(order) == len(set(order))
    assert set(failed) == skipped | (own - skipped)
    assert all(needs[name] in failed for name in skipped)
    assert all(order.index(needs[name]) < order.index(name) for name in order if needs[name])


def test_all_the_room_is_used():
    both = threading.Barrier(2, timeout=20)  # neither ends before the other has begun
    assert together({"a": Task(lambda: both.wait()), "b": Task(lambda: both.wait())}, room=lambda: 2) == {}


def test_room_that_comes_later_is_used(monkeypatch):
    monkeypatch.setattr("pipeline.together.SECONDS_BETWEEN_LOOKS", 0.05)
    both = threading.Barrier(2, timeout=20)
    grown = iter([1, 1, 1])
    tasks = {"a": Task(lambda: both.wait()), "b": Task(lambda: both.wait())}
    assert together(tasks, room=lambda: next(grown, 2)) == {}


def test_an_interruption_reaches_all_that_run_and_begins_nothing_more(monkeypatch):
    monkeypatch.setattr("pipeline.together.SECONDS_BETWEEN_LOOKS", 0.05)
    begun, ended, looks = threading.Barrier(3, timeout=20), [], iter([1, 2])

    def action():
        try:
            begun.wait()
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            ended.append(threading.current_thread())
            raise

    def room():
        if most := next(looks, None):
            return most
        begun.wait()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        together({name: Task(action) for name in "abc"}, room=room)
    assert len(ended) == 2 and not begun.broken


def test_train_all_knows_the_networks_of_the_dag_and_puts_teachers_first():
    experiment = Experiment(seeds=[0, 1], teacher="cnn", unguided=["a"], guided=["b"], guidance=["x", "y"])
    tasks = train_all.networks(experiment)
    assert set(tasks) == {
        f"{name}/{seed}" for name in ("teacher/cnn", "unguided/a", "guided/b-x", "guided/b-y") for seed in (0, 1)
    }
    assert {name: task.after for name, task in tasks.items() if task.after} == {
        f"guided/b-{guidance}/{seed}": f"teacher/cnn/{seed}" for guidance in "xy" for seed in (0, 1)
    }


def test_a_network_is_out_of_date_with_the_one_that_it_needs():
    plans = {name: SimpleNamespace(is_done=lambda name=name: name != "cnn") for name in ("cnn", "a", "b", "taught")}
    plans["refused"] = None
    after = {"taught": "cnn", "refused": "a"}

    def plan(name):
        if plans[name] is None:
            raise UserError("settings that contradict each other")
        return plans[name]

    found = {name: train_all.Network(partial(plan, name), after.get(name)) for name in plans}
    assert list(train_all.out_of_date(found)) == ["cnn", "taught", "refused"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_train_all_trains_what_is_out_of_date_and_dvc_only_records_it(tmp_path, monkeypatch):
    project = copy_of_the_project(tmp_path)
    change(project, cluster__num_workers=1, experiment__guidance=["early"])
    run("dvc", "repro", "prepare", cwd=project)
    (in_the_way := project / "models/unguided/sl_vit").parent.mkdir(parents=True)
    in_the_way.write_text("a file")
    command = [sys.executable, "-m", "stages.train_all"]

    failed = run(*command, cwd=project, check=False)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    lines = failed.stderr.splitlines()[-2:]
    assert lines[0].startswith("failed: unguided/sl_vit/0: ")
    assert lines[1] == "error: 1 of 4 networks failed; the others are trained, `dvc repro` records them"

    in_the_way.unlink()
    again = run(*command, cwd=project).stdout
    assert again.count(" is up to date\n") == 3
    assert " train_loss " not in again  # the fourth was trained: only its outs were missing
    recorded = run("dvc", "repro", cwd=project).stdout
    assert "Running stage 'guided@vit-early-0'" in recorded and " train_loss " not in recorded
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # where no Ray is: none is needed
    assert run(*command, cwd=project).stdout.count(" is up to date\n") == 4
    assert "Data and pipelines are up to date" in run("dvc", "repro", cwd=project).stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_train_all_that_is_interrupted_leaves_runs_that_were_killed_and_goes_on(how, tmp_path):
    project = copy_of_the_project(tmp_path)
    change(project, cluster__num_workers=1, cluster__cpus_per_worker=1, experiment__unguided=["vit"], experiment__guided=[])
    change(project, training__student__duration="60 epochs", training__teacher__duration="60 epochs")
    run("dvc", "repro", "prepare", cwd=project)
    with nodes(2) as one:
        environment = {**os.environ, **ENVIRONMENT, "RAY_ADDRESS": one.address}
        command = [sys.executable, "-m", "stages.train_all"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=project, env=environment, **pipes) as training:
            told = set()
            while len(told) < 2:
                line = training.stdout.readline()
                told |= {line.split()[0]} if " epoch " in line else set()
            training.send_signal(how)
            _, errors = training.communicate()
        assert training.returncode == 130 and "Traceback" not in errors
        assert errors.splitlines()[-1] == "interrupted; the same command goes on from the last checkpoint"
        assert statuses(project) == {"teacher/resnet/0": "KILLED", "unguided/vit/0": "KILLED"}

        subprocess.run(command, cwd=project, env=environment, stdout=subprocess.DEVNULL, check=True)
        assert statuses(project) == {"teacher/resnet/0": "FINISHED", "unguided/vit/0": "FINISHED"}


def statuses(project):
    client = MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("espalier").experiment_id
    return {found.info.run_name: found.info.status for found in client.search_runs([experiment])}


# Where their checkpoints lie


@pytest.fixture(params=["folder", "uri"])
def place(request, tmp_path):
    return str(tmp_path / "kept") if request.param == "folder" else (tmp_path / "kept").as_uri()


def test_a_place_that_works_passes_and_keeps_no_trace(place, tmp_path):
    Checkpoints(place).check()
    assert list((tmp_path / "kept").iterdir()) == []


def test_checkpoints_come_back_newest_first_and_two_are_kept(place):
    kept = Checkpoints(place)
    for epoch in range(1, 12):
        kept.write(epoch, str(epoch).encode())
    assert list(kept.newest_first()) == [b"11", b"10"]
    assert kept.newest().startswith("epoch 11 in ")
    kept.delete()
    assert list(Checkpoints(place).newest_first()) == []


def test_the_newest_checkpoint_can_always_be_told(place, tmp_path):
    assert Checkpoints(place).newest() == "none yet"
    (tmp_path / "kept").write_text("in the way")
    assert Checkpoints(place).newest().startswith("not known (")
    assert Checkpoints("nowhere://x").newest().startswith("not known (")


def test_a_store_without_folders_or_rename_of_its_own_works(tmp_path, monkeypatch):
    """As an object store is reached: through a prefix of another file system."""
    below = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(checkpoints, "_open", lambda place: (below, place))
    kept = Checkpoints("bucket/run/checkpoints")
    kept.check()
    kept.write(1, b"one")
    assert list(kept.newest_first()) == [b"one"] and (tmp_path / "bucket/run/checkpoints/epoch-00001.pt").is_file()


def test_a_place_that_cannot_be_used_is_one_line_before_anything_is_trained(tmp_path):
    (tmp_path / "file").write_text("in the way")
    told = []
    where = cluster(scratch=str(tmp_path / "runs"), checkpoints=str(tmp_path / "file"))
    with pytest.raises(
        UserError, match=r"^the place of the checkpoints, .*/file/run/checkpoints \(cluster.checkpoints.*$"
    ) as line:
        distributed.fit(job(), where, identity="run", listener=distributed.Listener(epoch=told.append))
    assert told == [] and "\n" not in str(line.value)


def test_a_uri_that_is_none_is_one_line():
    with pytest.raises(UserError, match="cluster.checkpoints 'nosuch://bucket/folder'.*give a folder, or a URI"):
        Checkpoints("nosuch://bucket/folder").check()


# Files to start a cluster with


def read(name):
    return YAML(typ="safe").load(Path("cluster", name).read_text())


def version(package):
    lines = Path("requirements.lock").read_text().splitlines()
    return next(line.split("==")[1] for line in lines if line.startswith(f"{package}=="))


def test_the_ray_cluster_file_satisfies_rays_own_schema():
    tree = read("ray-cluster.yaml")
    folder = Path(find_spec("ray").origin).parent / "autoscaler"  # without Ray itself, which reads its environment once
    jsonschema.validate(tree, json.loads((folder / "ray-schema.json").read_text()))
    types = tree["available_node_types"]
    assert tree["head_node_type"] in types and tree["max_workers"] >= sum(each.get("min_workers", 0) for each in types.values())


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_the_nodes_of_the_cluster_file_want_a_token(commands):
    tree = read("ray-cluster.yaml")
    start = [command for command in tree[commands] if "ray start" in command]
    assert start and all(command.startswith("RAY_AUTH_MODE=token ") and "0.0.0.0" not in command for command in start)
    assert "/home/ray/.ray/auth_token" in tree["file_mounts"]


def test_the_rayjob_has_the_form_that_kuberay_knows():
    manifest = read("rayjob.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    whole = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"}
    assert set(manifest["spec"]) == whole
    made = manifest["spec"]["rayClusterSpec"]
    assert set(made) == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    assert made["authOptions"] == {"mode": "token"}
    assert set(made["headGroupSpec"]) == {"serviceType", "rayStartParams", "template"}
    for group in made["workerGroupSpecs"]:
        assert set(group) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (made["headGroupSpec"], *made["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["resources"]["requests"] == container["resources"]["limits"]  # Ray counts the limits
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_cluster_files_have_the_ray_of_the_lock():
    assert read("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")
    image = f"rayproject/ray:{version('ray')}-py311-gpu"
    assert read("ray-cluster.yaml")["docker"]["image"] == image
    assert f"FROM {image}\n" in Path("cluster/Dockerfile").read_text()


@pytest.mark.parametrize("name", ["in-a-copy.sh", "mlflow-server.sh"])
def test_the_scripts_can_be_run(name):
    path = Path("cluster", name)
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)

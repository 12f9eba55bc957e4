"""The whole DAG, in a copy of the project, by real DVC: small networks, in the stages' own processes."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
yaml = YAML()


def run(*command, cwd, check=True, **more):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, **more)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def change(project, **changes):
    """Write dotted settings into the project's params.yaml."""
    tree = yaml.load((project / "params.yaml").read_text())
    for dotted, value in changes.items():
        *parents, key = dotted.split("__")
        section = tree
        for parent in parents:
            section = section[parent]
        section[key] = value
    with (project / "params.yaml").open("w") as file:
        yaml.dump(tree, file)


def copy_of_the_project(project):
    """What git would clone, with the changes of the working tree, as a repository of its own."""
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.splitlines()
    for name in names:
        if name != "dvc.lock" and (ROOT / name).exists():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            (project / name).write_bytes((ROOT / name).read_bytes())
    run("git", "init", "-q", cwd=project)
    run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "--allow-empty", "-m", "start", cwd=project)
    small = {"width": 16, "depth": 2, "heads": 2}
    change(project, cluster__num_workers=0, cluster__checkpoint_interval="0 seconds")
    change(project, training__student__duration="4 epochs", training__teacher__duration="2 epochs", experiment__guided=["vit"])
    change(project, guidance__early__distillation="soft", guidance__constant__offline=True, training__student__ema_decay=0.9)
    few = {"students.vit.depth": {"choice": [2, 3]}}
    change(project, search__space=few, search__searcher="random", search__scheduler="none", search__duration=None)
    change(project, search__budget__trials=2, evaluation__corrupted_pictures=20)
    for student in ("vit", "sl_vit"):
        change(project, **{f"students__{student}__{key}": value for key, value in small.items()})
    run("git", "add", "-A", cwd=project)
    run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "all", cwd=project)
    return project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy in which `dvc repro` has run once."""
    made = copy_of_the_project(tmp_path_factory.mktemp("project"))
    run("dvc", "repro", cwd=made)
    return made


@pytest.mark.timeout(900)
def test_the_dag_gives_models_metrics_and_a_report(project):
    table = list(csv.DictReader((project / "report/table.csv").open()))
    assert [row["network"] for row in table] == [
        "teacher/resnet",
        "unguided/vit",
        "unguided/sl_vit",
        "guided/vit-constant",
        "guided/vit-early",
    ]
    for row in table:
        assert 0.1 < float(row["test_accuracy"]) <= 1
        folder = project / "models" / row["network"] / "0"
        assert (folder / "model.safetensors").is_file() and json.loads((folder / "config.json").read_text())["espalier"]
        results = project / "results" / row["network"] / "0"
        assert len((results / "predictions.csv").read_text().splitlines()) == 1 + 359
        assert f"local-dir:models/{row['network']}/0" in (results / "README.md").read_text()
    text = (project / "report/index.html").read_text()
    assert text.count('<img class="sheet"') == 3 and "than the same student unguided" in text


def test_nothing_but_the_lock_is_new_to_git(project):
    assert run("git", "status", "--short", cwd=project).stdout.split() == ["??", "dvc.lock"]


def test_a_second_repro_is_a_no_op(project):
    assert "Data and pipelines are up to date" in run("dvc", "repro", cwd=project).stdout


def test_where_a_run_happens_is_no_dependency(project):
    change(project, cluster__max_failures=7)
    assert "Data and pipelines are up to date" in run("dvc", "repro", cwd=project).stdout


def test_dvc_shows_metrics_and_plots_without_a_network(project):
    shown = json.loads(run("dvc", "metrics", "show", "--json", cwd=project).stdout)[""]["data"]
    assert "accuracy" in shown[str(Path("results/unguided/vit/0/test.json"))]["data"]
    run(sys.executable, "-m", "stages.offline_plots", cwd=project)
    run("dvc", "plots", "show", cwd=project)
    page = (project / "dvc_plots/index.html").read_text()
    assert "guided/vit-early/0" in page and "src=" not in page.split("<body>")[0].split("<script>")[0]
    assert 'src="https://' not in page


def points_in_mlflow(project, name):
    """How many points the curve of the only run of that name has, each at a step of its own."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("espalier").experiment_id
    (one,) = client.search_runs([experiment], f"attributes.run_name = '{name}'")
    steps = [point.step for point in client.get_metric_history(one.info.run_id, "val/loss")]
    assert len(steps) == len(set(steps))
    return len(steps)


def test_the_runs_are_in_mlflow_one_per_network_with_curves_and_test_metrics(project):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("espalier").experiment_id
    found = {run.info.run_name: run for run in client.search_runs([experiment], "tags.in_report = 'yes'")}
    assert len(found) == 5 and found["guided/vit-early/0"].data.tags["kind"] == "guided"
    for one in found.values():
        assert one.info.status == "FINISHED" and "test/accuracy" in one.data.metrics
        steps = [point.step for point in client.get_metric_history(one.info.run_id, "val/accuracy")]
        assert steps == sorted(set(steps)) and len(steps) in (2, 4)
        assert {"model", "confusion.png", "explanation.png", "predictions.csv"} <= {
            entry.path for entry in client.list_artifacts(one.info.run_id)
        }


def test_a_changed_student_trains_that_student_alone(project):
    out = run("dvc", "exp", "run", "-S", "students.sl_vit.depth=3", "-n", "deeper", cwd=project).stdout
    ran = [line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")]
    assert ran == ["unguided@sl_vit-0", "evaluate_unguided@sl_vit-0", "report"]


def test_a_trial_is_the_training_that_its_settings_are(project):
    first, second = csv.DictReader((project / "search/trials.csv").open())
    trained = json.loads((project / "models/unguided/vit/0/config.json").read_text())
    assert trained["espalier"]["identity"] == first["identity"] and first["students.vit.depth"] == "2"
    best = yaml.load((project / "search/best.yaml").read_text())
    assert best["command"] == f"dvc exp run -S students.vit.depth={best['settings']['students.vit.depth']}"
    adopt = ["dvc", "exp", "run", "-n", "adopted", "-S", f"students.vit.depth={second['students.vit.depth']}", "unguided@vit-0"]
    out = run(*adopt, cwd=project).stdout
    assert "Running stage 'unguided@vit-0'" in out and " epoch " not in out
    run("git", "checkout", "--", "params.yaml", cwd=project)


def test_an_experiment_in_a_copy_of_the_project_keeps_its_runs_in_the_projects_mlflow(project):
    from mlflow import MlflowClient

    run("dvc", "exp", "run", "--temp", "-S", "students.sl_vit.depth=4", "-n", "aside", cwd=project)
    client = MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("espalier").experiment_id
    names = [found.info.run_name for found in client.search_runs([experiment], "params.`network.depth` = '4'")]
    assert names == ["unguided/sl_vit/0"]


def test_a_mistake_is_one_line_and_leaves_nothing(project):
    before = (project / "params.yaml").read_text()
    change(project, training__student__duratoin=3)
    failed = run(sys.executable, "-m", "stages.unguided", "vit", "0", cwd=project, check=False)
    (project / "params.yaml").write_text(before)
    assert failed.returncode == 1 and failed.stdout == ""
    assert failed.stderr == "error: params.yaml: unknown key 'training.student.duratoin'; did you mean 'duration'?\n"


def test_a_missing_teacher_is_one_line(project, tmp_path):
    (project / "models/teacher").rename(tmp_path / "teacher")
    failed = run(sys.executable, "-m", "stages.guided", "vit", "early", "0", cwd=project, check=False)
    (tmp_path / "teacher").rename(project / "models/teacher")
    assert failed.returncode == 1
    assert failed.stderr == "error: models/teacher/resnet/0 holds no trained network; `dvc repro teacher` makes it\n"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_stage_that_was_stopped_goes_on(how, project):
    change(project, training__student__duration="40 epochs")
    change(project, experiment__seeds=[how.value])  # a run of its own
    command = [sys.executable, "-m", "stages.unguided", "vit", str(how.value)]
    stage = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in stage.stdout:
        if " epoch 5/" in line:
            break
    stage.send_signal(how)
    _, errors = stage.communicate()
    assert stage.returncode == (-9 if how == signal.SIGKILL else 130) and "Traceback" not in errors
    assert not (project / f"models/unguided/vit/{how.value}").exists()
    first = run(*command, cwd=project).stdout.splitlines()[0]
    assert int(first.split(" epoch ")[1].split("/")[0]) >= 6
    assert len((project / f"results/unguided/vit/{how.value}/curve.csv").read_text().splitlines()) == 41
    assert points_in_mlflow(project, f"unguided/vit/{how.value}") == 40


@pytest.mark.timeout(900)
def test_a_folder_of_photographs_works(tmp_path):
    """Pictures of many sizes and kinds, one sub-folder per class."""
    project = copy_of_the_project(tmp_path / "project")
    for label, colour in enumerate([(200, 40, 40), (40, 200, 40), (40, 40, 200)]):
        folder = tmp_path / "photos" / f"class {label}"
        folder.mkdir(parents=True)
        for index in range(40):
            image = Image.effect_noise((40 + index, 70 - index), 60).convert("RGB")
            image = Image.blend(image, Image.new("RGB", image.size, colour), 0.4)
            image.convert("L" if index % 10 == 9 else "RGB").save(folder / f"{index}.{('png', 'jpg', 'webp')[index % 3]}")
    change(project, data__source="image_folder", data__path=str(tmp_path / "photos"), data__image_size=32)
    change(project, training__student__batch_size=16, training__teacher__batch_size=16, experiment__unguided=["sl_vit"])
    change(project, experiment__guided=[], search__budget__trials=0)
    run("dvc", "repro", cwd=project)
    rows = {row["network"]: row for row in csv.DictReader((project / "report/table.csv").open())}
    assert float(rows["unguided/sl_vit"]["test_accuracy"]) > 0.5
    tested = list(csv.DictReader((project / "results/unguided/sl_vit/0/predictions.csv").open()))
    pictures = "\n".join(str(tmp_path / "photos" / row["picture"]) for row in tested)
    command = [sys.executable, "-m", "stages.predict", "models/unguided/sl_vit/0", "-", "--top", "1"]
    said = list(csv.DictReader(run(*command, cwd=project, input=pictures).stdout.splitlines()))
    assert [row["label"] for row in said] == [row["predicted"] for row in tested]
    for one, other in zip(said, tested, strict=True):
        assert abs(float(one["probability"]) - float(other["confidence"])) < 1e-4
    Image.new("RGB", (50, 50)).save(tmp_path / "photos/class 0/new.png")
    assert "prepare" in run("dvc", "status", cwd=project).stdout

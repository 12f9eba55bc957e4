"""dvc.yaml keeps its promises: true deps, no test split outside evaluate, imports that point one way."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.dependencies import imported, is_code, listed, ours, script

STAGES = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]
TEST = "data/prepared/test.arrow"

LAYERS = [  # a module may import those of earlier lines, and of its own
    "config durations networks section space metrics files identity progress scheduling similarity together",
    "data models registry tracking checkpoints",
    "training",
    "explain preflight distributed prediction export served runs offline",
    "search",
    "report",
    "stages",
]
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names.split()}
HOMES = {  # a third-party package -> the only modules that may import it
    "pyarrow": {"pipeline/data/prepared.py", "pipeline/data/sources/parquet.py", "pipeline/checkpoints.py"},
    "mlflow": {"pipeline/tracking.py", "pipeline/export.py", "pipeline/served.py"},
    "ray": {"pipeline/distributed.py", "pipeline/preflight.py", "pipeline/search/tune.py"},
    "optuna": {"pipeline/search/candidates.py"},
    "timm": {"pipeline/models/tapped.py", "pipeline/registry.py", "pipeline/models/zoo.py", "pipeline/training/optim.py"},
    "onnxruntime": {"pipeline/export.py"},
    "matplotlib": {"pipeline/report/figures.py"},
    "dvc": set(),
}
MODULES = sorted(Path("pipeline").rglob("*.py")) + sorted(Path("stages").glob("*.py"))


def layer(path):
    parts = path.with_suffix("").parts
    return DEPTH["stages" if parts[0] == "stages" else parts[1]]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_one_way(path):
    for below in ours(path) - {Path("pipeline/__init__.py"), path}:
        if path.name != "__init__.py" or len(path.parts) > 2:
            assert layer(below) <= layer(path), f"{path} may not import {below}"
    for package in HOMES.keys() & {name.split(".")[0] for name in imported(path)}:
        assert str(path) in HOMES[package], f"{package} does not belong in {path}"


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_lists_the_modules_that_the_stage_imports(stage):
    assert sorted(filter(is_code, STAGES[stage]["deps"])) == listed(script(stage)), "python -m tests.dependencies mends it"


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_lists_the_params_that_the_stage_loads(stage):
    tree = ast.parse(script(stage).read_text())
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "config.load"]
    loaded = {ast.unparse(arg).strip("f'\"").split(".")[0] for load in loads for arg in load.args}
    listed = {param.split(".")[0] for param in STAGES[stage].get("params", [])}
    assert loaded - {"cluster", "tracking"} == listed  # these two say where a run happens, not what it computes


@pytest.mark.parametrize("stage", STAGES)
def test_only_evaluate_depends_on_the_test_split(stage):
    reads = [dep for dep in STAGES[stage]["deps"] if Path(TEST).is_relative_to(dep) or dep == TEST]
    assert bool(reads) == stage.startswith("evaluate")


def test_only_evaluate_names_the_test_split_in_its_code():
    named = [path.stem for path in Path("stages").glob("*.py") if "test.arrow" in path.read_text()]
    assert named == ["evaluate"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_deps_and_plain_outs(stage):
    assert STAGES[stage]["deps"]
    for out in [*STAGES[stage].get("outs", []), *STAGES[stage].get("metrics", [])]:
        assert isinstance(out, str) and not Path(out).is_absolute() and ".." not in Path(out).parts


def test_the_lock_holds_names_and_versions_only():
    for line in Path("requirements.lock").read_text().splitlines():
        name, version = line.split("==")
        assert name and version and not set("/@: ") & set(line)


def test_no_param_bears_a_name_that_dvc_forgets(params):
    """DVC's run cache drops the keys `size` and `nfiles` at any depth: a change of theirs would go unseen."""

    def keys(tree):
        for key, value in tree.items():
            yield key
            if isinstance(value, dict):
                yield from keys(value)

    assert not {"size", "nfiles"} & set(keys(params))

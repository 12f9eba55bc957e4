"""Which modules of ours a stage really imports. `python -m tests.dependencies` writes them into dvc.yaml."""

import ast
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML

DVC = Path("dvc.yaml")
PACKAGES = ("pipeline/data/augment", "pipeline/data/sources", "pipeline/models", "pipeline/training")  # listed as folders


def imported(path: Path) -> Iterator[str]:
    """The names that a module imports, at its top or in a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(name: str) -> set[Path]:
    """The file of a module of ours, and those of the packages around it."""
    parts = Path(*name.split("."))
    around = [parent / "__init__.py" for parent in [parts, *parts.parents]]
    return {file for file in [parts.with_suffix(".py"), *around] if file.exists() and file.stat().st_size}


def ours(path: Path) -> set[Path]:
    """The files of ours that a module imports."""
    return {file for name in imported(path) for file in files_of(name)}


def closure(path: Path) -> set[Path]:
    """All files of ours that a script needs, itself too."""
    seen: set[Path] = set()
    todo = {path, Path("stages/__init__.py")}
    while todo:
        seen.add(file := todo.pop())
        todo |= ours(file) - seen
    return seen


def listed(path: Path) -> list[str]:
    """A script's entries among the deps of its stage: files, and packages of which it needs every module."""
    files = {str(file) for file in closure(path)}
    for package in PACKAGES:
        modules = {str(module) for module in Path(package).glob("*.py") if module.stat().st_size}
        if modules <= files:
            files = files - modules | {package}
    return sorted(files)


def script(stage: str) -> Path:
    """evaluate_teacher and its like are one script."""
    return Path("stages", f"{'evaluate' if stage.startswith('evaluate') else stage}.py")


def is_code(dep: str) -> bool:
    """Whether an entry is one that `listed` gives."""
    return dep.endswith(".py") or dep in PACKAGES


def main() -> None:
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 10000
    tree = yaml.load(DVC.read_text())
    for name, stage in tree["stages"].items():
        deps = stage["deps"]
        others = [dep for dep in deps if not is_code(dep)]
        deps.clear()
        deps.extend([*others, *listed(script(name))])
    with DVC.open("w") as file:
        yaml.dump(tree, file)


if __name__ == "__main__":
    main()

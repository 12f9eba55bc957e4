"""A run's identity: the same settings, data, code and versions give the same name, any other gives another."""

import hashlib
import json
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
# What decides the numbers of a training, beside its settings and its data.
TRAINING_CODE = (
    "metrics.py",
    "data/augment",
    "data/batches.py",
    "data/decode.py",
    "data/features.py",
    "data/loading.py",
    "durations.py",
    "models",
    "networks.py",
    "offline.py",
    "similarity.py",
    "training",
)
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")


def identity(**parts: Any) -> str:
    """16 hexadecimal digits over `parts` (plain values), the training code and the versions that matter."""
    whole = {**parts, "code": code_digest(TRAINING_CODE), "versions": versions()}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def code_digest(names: Iterable[str]) -> str:
    """One hash over the named modules and packages of this library; where they lie does not count."""
    digest = hashlib.sha256()
    for path in sorted(file for name in names for file in _sources(PACKAGE / name)):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Python and the packages whose change can change a result."""
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def _sources(path: Path) -> Iterable[Path]:
    return [path] if path.is_file() else path.rglob("*.py")

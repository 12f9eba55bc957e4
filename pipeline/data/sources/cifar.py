"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) as their owner gives them: python or binary version, archive or folder."""

import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Data, UserError
from pipeline.data.sources.base import Picture, Source
from pipeline.data.sources.tree import Tree, holding

SHAPE = (3, 32, 32)  # of a stored picture: channels, height, width
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Version:
    """How one of the archives is laid out. read: the pixels (N, 3072) and labels (N,) of the content of one of its files."""

    splits: dict[str, list[str]]
    names: str  # the file of the class names
    read: Callable[[bytes], tuple[np.ndarray, np.ndarray]]
    read_names: Callable[[bytes], list[str]]


def cifar10(data: Data) -> Source:
    """data_batch_1 to 5 and test_batch, with or without .bin."""
    return _source(Path(data.path), [CIFAR10_PYTHON, CIFAR10_BINARY])


def cifar100(data: Data) -> Source:
    """train and test, with or without .bin; the labels are the 100 fine ones."""
    return _source(Path(data.path), [CIFAR100_PYTHON, CIFAR100_BINARY])


def _source(path: Path, versions: list[Version]) -> Source:
    tree = holding(path, *(version.names for version in versions))
    version = next(version for version in versions if version.names in tree.names)
    classes = _guarded(version.read_names, tree, version.names)
    return Source(classes, {split: _pictures(tree, files, version) for split, files in version.splits.items()})


def _pictures(tree: Tree, files: Iterable[str], version: Version) -> Iterator[Picture]:
    for file in files:
        pixels, labels = _guarded(version.read, tree, file)
        for row, (picture, label) in enumerate(zip(pixels.reshape(-1, *SHAPE), labels.tolist(), strict=True)):
            yield Picture(f"{file} {row}", label, picture.transpose(1, 2, 0).tobytes, (32, 32, 3))


def _guarded(read: Callable[[bytes], Any], tree: Tree, file: str) -> Any:
    """What `read` makes of a file of the tree; whatever is wrong with it is one line."""
    content = tree.required(file)
    try:
        return read(content)
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError, ImportError) as error:
        raise UserError(f"{tree.path}: {file} is not what CIFAR holds ({' '.join(str(error).split())})") from None


class _Unpickler(pickle.Unpickler):
    """Admits NumPy arrays and plain values, which is all that CIFAR's own files hold; no other name is even looked up."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, which is refused") from None


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into a pickle that Python 2 can read."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the pickle asks for the codec {encoding}, which is refused")
    return text.encode("latin1")


ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


def _unpickle(content: bytes) -> dict[str, Any]:
    found = _Unpickler(BytesIO(content), encoding="bytes").load()
    return {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}


def _python(labels: str) -> Callable[[bytes], tuple[np.ndarray, np.ndarray]]:
    def read(content: bytes) -> tuple[np.ndarray, np.ndarray]:
        found = _unpickle(content)
        pixels, numbers = found["data"], np.array(found[labels], np.int64)
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(numbers), PIXELS):
            raise ValueError(f"data is no uint8 array of {len(numbers)} x {PIXELS}")
        return pixels, numbers

    return read


def _python_names(key: str) -> Callable[[bytes], list[str]]:
    return lambda content: [name.decode() if isinstance(name, bytes) else str(name) for name in _unpickle(content)[key]]


def _binary(label_bytes: int) -> Callable[[bytes], tuple[np.ndarray, np.ndarray]]:
    """Rows of labels, the fine one last, and pixels."""

    def read(content: bytes) -> tuple[np.ndarray, np.ndarray]:
        rows = np.frombuffer(content, np.uint8).reshape(-1, label_bytes + PIXELS)
        return rows[:, label_bytes:], rows[:, label_bytes - 1].astype(np.int64)

    return read


def _binary_names(content: bytes) -> list[str]:
    return content.decode().split()


TEN = {"train": [f"data_batch_{batch}" for batch in range(1, 6)], "test": ["test_batch"]}
HUNDRED = {"train": ["train"], "test": ["test"]}
TEN_BINARY, HUNDRED_BINARY = (
    {split: [f"{file}.bin" for file in files] for split, files in splits.items()} for splits in (TEN, HUNDRED)
)
CIFAR10_PYTHON = Version(TEN, "batches.meta", _python("labels"), _python_names("label_names"))
CIFAR10_BINARY = Version(TEN_BINARY, "batches.meta.txt", _binary(1), _binary_names)
CIFAR100_PYTHON = Version(HUNDRED, "meta", _python("fine_labels"), _python_names("fine_label_names"))
CIFAR100_BINARY = Version(HUNDRED_BINARY, "fine_label_names.txt", _binary(2), _binary_names)

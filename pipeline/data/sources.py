"""One reader per layout in which people have their pictures.

A reader names the classes and yields the pictures of each split, one at a time, so that memory holds one of them.
Adding a layout is a function here and an entry in SOURCES.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config import Data, UserError

EXTENSIONS = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])
SPLITS = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test", "testing")}


@dataclass(frozen=True)
class Picture:
    """One labelled picture as its owner has it.

    name: how its owner would find it. read: gives the bytes of its file, or of its pixels (uint8, C order) where a shape
    (H, W, C) is given; may raise Unreadable.
    """

    name: str
    label: int
    read: Callable[[], bytes]
    shape: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Source:
    """A data set as people have it. `splits` holds "train" and whatever else the source itself defines.

    grey: whether pictures stay of one channel where all of them are.
    """

    classes: list[str]
    splits: dict[str, Iterator[Picture]]
    grey: bool = False


def read(data: Data) -> Source:
    """Open the source that the settings name. Raises UserError where it is not what it should be."""
    return SOURCES[data.source](data)


def digits(data: Data) -> Source:
    """The 1,797 handwritten digits (8 x 8, 17 grey levels) that scikit-learn carries (UCI, Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labelled = enumerate(zip(grey, bunch.target.tolist(), strict=True))
    pictures = (_digit(index, label, image) for index, (image, label) in labelled)
    return Source(classes=[str(name) for name in bunch.target_names], splits={"train": pictures}, grey=True)


def _digit(index: int, label: int, image: np.ndarray) -> Picture:
    return Picture(f"digit {index}", label, image.tobytes, (*image.shape, 1))


def image_folder(data: Data) -> Source:
    """A folder with one sub-folder per class; or train/, [val/,] [test/] that each hold these."""
    root = Path(data.path)
    if not root.is_dir():
        raise UserError(f"data.path '{data.path}' is not a folder; give one that holds a sub-folder per class")
    folders = _split_folders(root)
    classes = sorted({path.name for folder in folders.values() for path in _subfolders(folder)})
    if len(classes) < 2:
        raise UserError(f"data.path '{data.path}' holds {len(classes)} class sub-folders; at least 2 are needed")
    splits = {split: _pictures(root, folder, classes) for split, folder in folders.items()}
    return Source(classes=classes, splits=splits)


SOURCES: dict[str, Callable[[Data], Source]] = {"digits": digits, "image_folder": image_folder}


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split that the source defines; the root itself where it defines none."""
    named = {path.name.lower(): path for path in _subfolders(root)}
    found = {split: named[name] for split, names in SPLITS.items() for name in names if name in named}
    return found if "train" in found else {"train": root}


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(root: Path, folder: Path, classes: list[str]) -> Iterator[Picture]:
    """The pictures below each class folder, hidden files and other kinds of file left out."""
    for label, name in enumerate(classes):
        for parent, below, files in os.walk(folder / name):
            below[:] = sorted(entry for entry in below if not entry.startswith("."))
            for file in sorted(files):
                path = Path(parent, file)
                if path.suffix.lower() in EXTENSIONS and not file.startswith("."):
                    yield _picture_file(path, str(path.relative_to(root)), label)


def _picture_file(path: Path, name: str, label: int) -> Picture:
    return Picture(name, label, path.read_bytes)

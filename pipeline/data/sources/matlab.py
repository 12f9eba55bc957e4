"""Sources with .mat files, which hold arrays and never code (read by SciPy)."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Data, UserError
from pipeline.data.sources.base import Picture, Source, listed
from pipeline.data.sources.tree import Tree, holding


def svhn(data: Data) -> Source:
    """Street View House Numbers, cropped (Netzer et al. 2011): train_32x32.mat, test_32x32.mat.

    The easier extra_32x32.mat, where it lies beside them, belongs to train.
    """
    tree = holding(Path(data.path), "train_32x32.mat")
    train = [name for name in ("train_32x32.mat", "extra_32x32.mat") if name in tree.names]
    splits = {"train": _digits(tree, train), "test": _digits(tree, ["test_32x32.mat"])}
    return Source([str(digit) for digit in range(10)], splits)


def flowers102(data: Data) -> Source:
    """Oxford 102 Flowers (Nilsback & Zisserman 2008): jpg/ or 102flowers.tgz, imagelabels.mat and setid.mat."""
    from torchvision.datasets import Flowers102

    tree = holding(Path(data.path), "setid.mat")
    sets, labels = _arrays(tree, "setid.mat", "trnid", "valid", "tstid"), _arrays(tree, "imagelabels.mat", "labels")[0]
    numbers = dict(zip(("train", "validation", "test"), (part.ravel().tolist() for part in sets), strict=True))
    if not 0 < min(map(min, numbers.values())) <= max(map(max, numbers.values())) <= labels.size:
        raise UserError(f"{data.path}: setid.mat names pictures for which imagelabels.mat has no label")
    tree, label = holding(Path(data.path), "image_00001.jpg"), labels.ravel().astype(int) - 1
    named = {split: [(f"image_{one:05}.jpg", int(label[one - 1])) for one in ones] for split, ones in numbers.items()}
    return Source(list(Flowers102.classes), {split: listed(tree, pictures) for split, pictures in named.items()})


def _digits(tree: Tree, files: Iterable[str]) -> Iterator[Picture]:
    for file in files:
        pixels, labels = _arrays(tree, file, "X", "y")  # (32, 32, 3, N); (N, 1), where 10 means 0
        if pixels.shape != (32, 32, 3, labels.size) or pixels.dtype != np.uint8:
            raise UserError(f"{tree.path}: {file} holds X of {pixels.shape}, where SVHN has (32, 32, 3, {labels.size})")
        for row, label in enumerate(labels.ravel().tolist()):
            yield Picture(f"{file} {row}", 0 if label == 10 else label, pixels[..., row].tobytes, (32, 32, 3))


def _arrays(tree: Tree, file: str, *names: str) -> list[Any]:
    from scipy.io import loadmat

    content = tree.required(file)
    try:
        found = loadmat(io.BytesIO(content), variable_names=names)
        return [found[name] for name in names]
    except Exception as error:  # SciPy documents none, and raises many
        raise UserError(f"{tree.path}: {file} is damaged or holds no {' and '.join(names)} ({type(error).__name__})") from None

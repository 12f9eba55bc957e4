"""From a data set as people have it to the prepared one: decode, split, count, store."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline import files
from pipeline.config import Data, UserError
from pipeline.data.prepared import SPLITS, Split, fingerprint, write_split
from pipeline.data.sources import Picture, Source, Unreadable


@dataclass(frozen=True)
class _Gathered:
    split: Split
    digests: np.ndarray  # (N,) of the source pictures' contents


def prepare(source: Source, data: Data, folder: Path) -> dict[str, Any]:
    """Decode, split and store a source as `folder`/{train,validation,test}.parquet and card.json; return the card.

    Raises UserError for pictures that cannot be read (unless they are to be skipped) and for classes too small to split.
    """
    unreadable: list[dict[str, str]] = []
    given = {split: _gather(pictures, split, data, unreadable) for split, pictures in source.splits.items()}
    splits = _complete(given, source.classes, data)
    card = _card(splits, source, data, unreadable)
    for name, gathered in splits.items():
        write_split(folder / f"{name}.parquet", gathered.split)
    files.write_json(folder / "card.json", card)
    return card


def _gather(pictures: Iterable[Picture], name: str, data: Data, unreadable: list[dict[str, str]]) -> _Gathered:
    """Decode the pictures of a split. The rows are ordered by content, so that no order of files can matter."""
    rows: list[tuple[str, str, int, np.ndarray]] = []
    for picture in tqdm(pictures, desc=f"read {name}", unit=" pictures", leave=False, disable=None):
        try:
            rows.append((picture.digest, picture.name, picture.label, picture.pixels(data.image_size)))
        except Unreadable as error:
            unreadable.append({"name": picture.name, "reason": str(error)})
    _refuse(unreadable, data)
    if not rows:
        raise UserError(f"data.path '{data.path}': no readable picture in the {name} split")
    rows.sort(key=lambda row: row[:2])
    digests, names, labels, pixels = zip(*rows, strict=True)
    return _Gathered(Split(np.stack(pixels), np.array(labels, dtype=np.int64), list(names)), np.array(digests))


def _refuse(unreadable: list[dict[str, str]], data: Data) -> None:
    if unreadable and data.unreadable == "error":
        first = "; ".join(f"{entry['name']} ({entry['reason']})" for entry in unreadable[:3])
        more = f" and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
        raise UserError(f"{len(unreadable)} unreadable: {first}{more}; mend or remove, or set data.unreadable: skip")


def _complete(given: dict[str, _Gathered], classes: list[str], data: Data) -> dict[str, _Gathered]:
    """Cut the test and the validation split from train where the source does not define them."""
    splits = dict(given)
    for name, fraction in (("test", data.test_fraction), ("validation", data.validation_fraction)):
        if name not in splits:
            splits["train"], splits[name] = _cut(splits["train"], fraction, classes, seed=data.split_seed, part=name)
    return {name: splits[name] for name in SPLITS}


def _cut(gathered: _Gathered, fraction: float, classes: list[str], *, seed: int, part: str) -> tuple[_Gathered, _Gathered]:
    """The same fraction of every class, chosen by a seeded hash of the pictures' contents."""
    labels = gathered.split.labels
    keys = np.array(
        [hashlib.blake2b(f"{seed} {part} {digest}".encode(), digest_size=16).hexdigest() for digest in gathered.digests]
    )
    away = np.zeros(len(labels), dtype=bool)
    for label, name in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        if len(rows) == 0:
            continue
        count = max(1, round(fraction * len(rows)))
        if count == len(rows):
            raise UserError(f"class '{name}' has {len(rows)} pictures, too few to cut a {part} split of {fraction:g} from")
        away[rows[np.argsort(keys[rows], kind="stable")[:count]]] = True
    kept, cut = np.flatnonzero(~away), np.flatnonzero(away)
    return tuple(_Gathered(gathered.split.take(rows), gathered.digests[rows]) for rows in (kept, cut))  # type: ignore[return-value]


def _card(splits: dict[str, _Gathered], source: Source, data: Data, unreadable: list[dict[str, str]]) -> dict[str, Any]:
    train = splits["train"].split
    if missing := set(range(len(source.classes))) - set(train.labels.tolist()):
        raise UserError(f"no training picture of class {', '.join(source.classes[label] for label in sorted(missing))}")
    mean, std = _channel_statistics(train.pixels)
    return {
        "source": data.source,
        "classes": source.classes,
        "image_shape": list(train.pixels.shape[1:]),  # height, width, channels
        "counts": {name: len(gathered.split) for name, gathered in splits.items()},
        "class_counts": {name: _class_counts(gathered.split, source.classes) for name, gathered in splits.items()},
        "mean": mean,
        "std": std,
        "duplicates": _duplicates(splits),
        "unreadable": unreadable,
        "fingerprint": fingerprint([splits[name].split for name in SPLITS]),
    }


def _class_counts(split: Split, classes: list[str]) -> dict[str, int]:
    return dict(zip(classes, np.bincount(split.labels, minlength=len(classes)).tolist(), strict=True))


def _channel_statistics(pixels: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of pixels / 255, exact: from the counts of the 256 values."""
    values = np.arange(256) / 255
    weights = [np.bincount(pixels[..., channel].ravel(), minlength=256) for channel in range(pixels.shape[-1])]
    means = [float(np.average(values, weights=weight)) for weight in weights]
    variances = [np.average((values - mean) ** 2, weights=weight) for mean, weight in zip(means, weights, strict=True)]
    return means, [max(float(np.sqrt(variance)), 1e-3) for variance in variances]


def _duplicates(splits: dict[str, _Gathered]) -> list[list[str]]:
    """Names of pictures with the same content that lie in different splits: the test set would not be unseen."""
    places: dict[str, dict[str, str]] = {}
    for split, gathered in splits.items():
        for digest, name in zip(gathered.digests, gathered.split.names, strict=True):
            places.setdefault(digest, {}).setdefault(split, f"{split}: {name}")
    return sorted(sorted(where.values()) for where in places.values() if len(where) > 1)

"""Which picture belongs to which split: decided by the content of the pictures and a seed, never by names or order."""

import hashlib

import numpy as np

from pipeline.config import Data, UserError
from pipeline.data.prepared import SPLITS
from pipeline.data.rows import Rows, repeated


def complete(given: dict[str, Rows], classes: list[str], data: Data) -> dict[str, Rows]:
    """Cut the test and the validation split from train where the source does not define them."""
    splits = dict(given)
    for name, fraction in (("test", data.test_fraction), ("validation", data.validation_fraction)):
        if name not in splits:
            splits["train"], splits[name] = cut(splits["train"], fraction, classes, seed=data.split_seed, part=name)
    return {name: splits[name] for name in SPLITS}


def cut(rows: Rows, fraction: float, classes: list[str], *, seed: int, part: str) -> tuple[Rows, Rows]:
    """The rows without the same fraction of every class, and that fraction. Equal pictures stay together."""
    keys, away = _keys(rows, seed, part), np.zeros(len(rows), dtype=bool)
    for label, name in enumerate(classes):
        ranked = _ranked(rows, keys, label)
        count = max(1, round(fraction * len(ranked)))
        while count < len(ranked) and keys[ranked[count]] == keys[ranked[count - 1]]:
            count += 1
        if count >= len(ranked):
            raise UserError(f"class '{name}' has {len(ranked)} pictures, too few to cut a {part} split of {fraction:g} from")
        away[ranked[:count]] = True
    return rows.take(np.flatnonzero(~away)), rows.take(np.flatnonzero(away))


def fewer(train: Rows, classes: list[str], data: Data) -> Rows:
    """The part of train that a low-data study asks for, of every class the same. A smaller part lies within a larger."""
    if data.train_fraction is None and data.train_per_class is None:
        return train
    keys, kept = _keys(train, data.split_seed, "train"), np.zeros(len(train), dtype=bool)
    for label, name in enumerate(classes):
        ranked = _ranked(train, keys, label)
        count = data.train_per_class or max(1, round((data.train_fraction or 1) * len(ranked)))
        if count > len(ranked):
            raise UserError(f"data.train_per_class is {count}, but class '{name}' has {len(ranked)} training pictures")
        kept[ranked[:count]] = True
    return train.take(np.flatnonzero(kept))


def without_duplicates(given: dict[str, Rows], classes: list[str]) -> tuple[dict[str, Rows], list[list[str]]]:
    """Keep the test and validation pictures, and of train the first of equal ones that is in neither.

    A validation picture that is a test picture goes too. The second value names each dropped picture and the kept one.
    """
    places = {split: given[split] for split in reversed(SPLITS) if split in given}
    chosen, dropped = repeated(places), []
    earlier: dict[bytes, str] = {}  # content -> where it is kept
    kept = {}
    for split, rows in places.items():
        stay, seen = np.ones(len(rows), dtype=bool), dict(earlier)
        for row in chosen[split]:
            digest, place = rows.facts["digest"][row], f"{split}: {rows.names[row]} as {classes[rows.facts['label'][row]]}"
            stay[row] = digest not in (seen if split == "train" else earlier)
            if not stay[row]:
                dropped.append([place, seen[digest]])
            seen.setdefault(digest, place)
        kept[split], earlier = rows.take(np.flatnonzero(stay)), seen
    return {split: kept[split] for split in given}, sorted(dropped)


def _keys(rows: Rows, seed: int, part: str) -> np.ndarray:
    """(N,) what decides each picture's rank: a hash of its content, another one for every seed and part."""
    salt = hashlib.blake2b(f"{seed} {part}".encode(), digest_size=16).digest()
    digests = rows.facts["digest"].tolist()
    return np.array([hashlib.blake2b(digest, digest_size=16, salt=salt).digest() for digest in digests], "S16")


def _ranked(rows: Rows, keys: np.ndarray, label: int) -> np.ndarray:
    """The rows of one class, in the order of their keys."""
    members = np.flatnonzero(rows.facts["label"] == label)
    return members[np.argsort(keys[members], kind="stable")]

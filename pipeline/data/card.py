"""The data card: the facts on a prepared data set, from the rows of its splits. Pure."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from pipeline.data.rows import Rows, repeated

IMBALANCE = 3.0  # times the pictures of the smallest class in the largest, from which it is told
NAMED = 3  # pictures in a sentence; the card's lists name all


def facts(splits: dict[str, Rows], classes: list[str], *, channels: int) -> dict[str, Any]:
    """What the pictures themselves tell. `splits` are the rows of train, validation and test."""
    everything = np.concatenate([rows.facts for rows in splits.values()])
    mean, std = _channel_statistics(splits["train"], channels)
    return {
        "channels": channels,
        "counts": {name: len(rows) for name, rows in splits.items()},
        "class_counts": {name: class_counts(rows, classes) for name, rows in splits.items()},
        "source_sizes": _sizes(everything),
        "encodings": _encodings(everything),
        "mean": mean,
        "std": std,
    }


def class_counts(rows: Rows, classes: list[str]) -> dict[str, int]:
    """Pictures of each class."""
    return dict(zip(classes, np.bincount(rows.facts["label"], minlength=len(classes)).tolist(), strict=True))


def duplicates(splits: dict[str, Rows], classes: list[str]) -> dict[str, list[list[str]]]:
    """Pictures of the same content, as groups of "split: name".

    across: in several splits, so that a test set would not be unseen. within: several times in one. conflicting: with
    different labels, each named.
    """
    places: dict[bytes, list[tuple[str, int, str]]] = defaultdict(list)
    for split, chosen in repeated(splits).items():
        for row in chosen:
            facts = splits[split].facts[row]
            places[facts["digest"]].append((split, int(facts["label"]), splits[split].names[row]))
    groups = sorted(places.values())
    return {
        "across": [_named(where) for where in groups if len({split for split, _, _ in where}) > 1],
        "within": [_named(where) for where in groups if len({split for split, _, _ in where}) < len(where)],
        "conflicting": [
            [f"{split}: {name} as {classes[label]}" for split, label, name in where]
            for where in groups
            if len({label for _, label, _ in where}) > 1
        ],
    }


def problems(card: dict[str, Any]) -> list[str]:
    """What a person should know before they trust the numbers, a line each."""
    told = {
        "the same picture is in several splits": card["duplicates"]["across"],
        "the same picture is several times in one split": card["duplicates"]["within"],
        "the same picture has different labels": card["duplicates"]["conflicting"],
        "pictures were dropped as duplicates": card["dropped"],
        "files were skipped as unreadable": [[f"{entry['name']} ({entry['reason']})"] for entry in card["unreadable"]],
    }
    lines = [f"{what}, {len(groups)} times: {_some(groups)}" for what, groups in told.items() if groups]
    return lines + _absent_classes(card) + _imbalance(card)


def _absent_classes(card: dict[str, Any]) -> list[str]:
    absent = {split: [name for name, count in counts.items() if not count] for split, counts in card["class_counts"].items()}
    return [f"the {split} split has no picture of class {', '.join(names)}" for split, names in absent.items() if names]


def _imbalance(card: dict[str, Any]) -> list[str]:
    counts = card["class_counts"]["train"]
    least, most = min(counts, key=counts.get), max(counts, key=counts.get)
    if counts[most] < IMBALANCE * counts[least]:
        return []
    return [
        f"classes are unbalanced: {counts[most]} training pictures of {most}, {counts[least]} of {least}; "
        "read the balanced accuracy too"
    ]


def _named(where: list[tuple[str, int, str]]) -> list[str]:
    return [f"{split}: {name}" for split, _, name in where]


def _some(groups: list[list[str]]) -> str:
    first = "; ".join(" = ".join(group[:NAMED]) for group in groups[:NAMED])
    return f"{first} and {len(groups) - NAMED} more, see card.json" if len(groups) > NAMED else first


def _sizes(facts: np.ndarray) -> dict[str, Any]:
    """Height and width in pixels as the owner has the pictures."""
    area = np.argsort(facts["height"].astype(np.int64) * facts["width"], kind="stable")
    places = {"smallest": area[0], "median": area[len(area) // 2], "largest": area[-1]}
    return {name: [int(facts["height"][row]), int(facts["width"][row])] for name, row in places.items()}


def _encodings(facts: np.ndarray) -> dict[str, dict[str, Any]]:
    """Per file format: pictures, colour modes, and of JPEGs the quality (estimated) and colour subsampling."""
    return {name.decode(): _encoding(facts[facts["format"] == name]) for name in np.unique(facts["format"])}


def _encoding(facts: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = {"pictures": len(facts), "modes": _tally(facts["mode"])}
    if (quality := facts["quality"][facts["quality"] >= 0]).size:
        found["quality"] = {"least": int(quality.min()), "median": int(np.median(quality)), "most": int(quality.max())}
        found["subsampling"] = _tally(facts["subsampling"])
    return found


def _tally(words: np.ndarray) -> dict[str, int]:
    return {word.decode(): count for word, count in sorted(Counter(words.tolist()).items())}


def _channel_statistics(train: Rows, channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of pixels / 255, every picture counting the same."""
    mean, square = train.facts["mean"].mean(0), train.facts["square"].mean(0)
    std = np.sqrt(np.maximum(square - mean**2, 1e-6))
    return mean[:channels].round(6).tolist(), std[:channels].round(6).tolist()

"""From a data set as people have it to the prepared one: decode, split, count, store."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline import files
from pipeline.config import Data, UserError
from pipeline.data import card as cards
from pipeline.data import prepared, splits
from pipeline.data.prepared import SPLITS
from pipeline.data.rows import Rows, Scratch
from pipeline.data.sources import Picture, Source

NAMED = 3  # pictures in an error line


def prepare(source: Source, data: Data, folder: Path) -> dict[str, Any]:
    """Decode, split and store a source as `folder`/{train,validation,test}.arrow and card.json; return the card.

    The folder is replaced as a whole. Raises UserError for pictures that cannot be read (unless they are to be skipped),
    for duplicates (where they are refused) and for classes too small to split.
    """
    with files.replacing(folder) as aside:
        aside.mkdir()
        with (aside / "scratch").open("w+b") as file:
            scratch = Scratch(file, data.image_size)
            card = _store(aside, scratch, *_split(source, data, scratch), source, data)
        (aside / "scratch").unlink()
        files.write_json(aside / "card.json", card)
    return card


def _split(source: Source, data: Data, scratch: Scratch) -> tuple[dict[str, Rows], list[list[str]]]:
    """The rows of train, validation and test, and the duplicates that were dropped."""
    given = {name: scratch.add(_shown(pictures, name)) for name, pictures in source.splits.items()}
    _refuse_unreadable(scratch.unreadable, data)
    _refuse_mislabelled(given, source.classes, data)
    dropped: list[list[str]] = []
    if data.duplicates == "drop":
        given, dropped = splits.without_duplicates(given, source.classes)
        _refuse_mislabelled(given, source.classes, data)
    whole = splits.complete(given, source.classes, data)
    if data.duplicates == "error":
        _refuse_duplicates(cards.duplicates(whole, source.classes))
    return whole | {"train": splits.fewer(whole["train"], source.classes, data)}, dropped


def _store(
    folder: Path, scratch: Scratch, whole: dict[str, Rows], dropped: list[list[str]], source: Source, data: Data
) -> dict[str, Any]:
    """Write the three splits; the card on them."""
    channels = 1 if source.grey and all(rows.facts["grey"].all() for rows in whole.values()) else 3
    for name in tqdm(SPLITS, desc="store", unit=" splits", leave=False, disable=None):
        prepared.write_split(folder / f"{name}.arrow", _tables(folder / "pixels", whole[name], scratch, channels))
    stored = [prepared.read_split(folder / f"{name}.arrow") for name in SPLITS]
    card = cards.facts(whole, source.classes, channels=channels) | {
        "source": data.source,
        "classes": source.classes,
        "image_shape": stored[0].image_shape and list(stored[0].image_shape),  # (H, W, C), or null: each its own
        "duplicates": cards.duplicates(whole, source.classes),
        "dropped": dropped,
        "unreadable": scratch.unreadable,
        "fingerprint": prepared.fingerprint(stored),
    }
    return card | {"problems": cards.problems(card)}


def _tables(aside: Path, rows: Rows, scratch: Scratch, channels: int) -> Iterable[Any]:
    """What is stored of one split. Pixels go through a file, so that the one array they are need not fit into memory."""
    labels, contents = rows.facts["label"], scratch.stored(rows, channels=channels)
    if not scratch.image_size:
        yield from prepared.encoded_tables(contents, labels, rows.names)
        return
    with aside.open("wb") as file:
        file.writelines(contents)
    shape = (len(rows), scratch.image_size, scratch.image_size, channels)
    yield prepared.pixel_table(np.memmap(aside, np.uint8, "r", shape=shape), labels, rows.names)
    aside.unlink()


def _shown(pictures: Iterable[Picture], name: str) -> Iterable[Picture]:
    return tqdm(pictures, desc=f"read {name}", unit=" pictures", leave=False, disable=None)


def _refuse_unreadable(unreadable: list[dict[str, str]], data: Data) -> None:
    if unreadable and data.unreadable == "error":
        named = _some([f"{entry['name']} ({entry['reason']})" for entry in unreadable])
        raise UserError(f"{len(unreadable)} unreadable: {named}; mend or remove, or set data.unreadable: skip")


def _refuse_mislabelled(given: dict[str, Rows], classes: list[str], data: Data) -> None:
    for split, rows in given.items():
        if len(rows) == 0:
            raise UserError(f"data.path '{data.path}': no picture that can be used in the {split} split")
        labels = rows.facts["label"]
        if wrong := np.flatnonzero((labels < 0) | (labels >= len(classes))).tolist():
            named = _some([f"{rows.names[row]} has {labels[row]}" for row in wrong])
            raise UserError(f"{len(wrong)} labels are not among the {len(classes)} classes (0 to {len(classes) - 1}): {named}")
    if missing := sorted(set(range(len(classes))) - set(given["train"].facts["label"].tolist())):
        raise UserError(f"no training picture of class {_some([classes[label] for label in missing])}")


def _refuse_duplicates(found: dict[str, list[list[str]]]) -> None:
    if groups := found["across"] + found["within"] + found["conflicting"]:
        named = _some([" = ".join(group) for group in groups])
        raise UserError(f"{len(groups)} duplicates: {named}; remove them, or set data.duplicates: drop or warn")


def _some(names: list[str]) -> str:
    return "; ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")

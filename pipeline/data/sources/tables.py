"""Sources in which a file says the label of each picture."""

import csv
import io
import json
from pathlib import Path

from pipeline.config import Data, UserError
from pipeline.data.sources.base import Source, at_least_two, class_names, listed, to_labels
from pipeline.data.sources.folders import SPLITS
from pipeline.data.sources.tree import Tree, holding, open_tree

SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
CHAOYANG = ["normal", "serrated", "adenocarcinoma", "adenoma"]


def csv_table(data: Data) -> Source:
    """One table at the top of a folder or archive: a column of paths in it, one of labels and perhaps one named split."""
    tree = open_tree(Path(data.path))
    file, rows = _table(tree, data)
    path, label = data.image_column or "path", data.label_column or "label"
    if missing := {path, label} - rows[0].keys():
        raise UserError(
            f"{file} has no column '{min(missing)}', only {', '.join(rows[0])}; see data.image_column, label_column"
        )
    where = f"{file}, column {label}"
    classes = at_least_two(class_names([row[label] for row in rows], where=where), where=where)
    splits: dict[str, list[tuple[str, int]]] = {"train": []}
    for row, index in zip(rows, to_labels([row[label] for row in rows], classes, where=where), strict=True):
        name = row.get("split") or "train"
        if name.lower() not in SPLIT_OF:
            raise UserError(f"{file}: split '{name}' is none of {', '.join(SPLIT_OF)}")
        splits.setdefault(SPLIT_OF[name.lower()], []).append((row[path], index))
    return Source(classes, {split: listed(tree, labelled) for split, labelled in splits.items()})


def _table(tree: Tree, data: Data) -> tuple[str, list[dict[str, str]]]:
    tables = [name for name in tree.names if name.lower().endswith(".csv") and "/" not in name]
    if len(tables) != 1:
        raise UserError(
            f"data.path '{data.path}' holds {len(tables)} .csv files at its top; csv needs one, beside its pictures"
        )
    try:
        rows = list(csv.DictReader(io.StringIO(tree.text(tables[0])), strict=True))
    except csv.Error as error:
        raise UserError(f"{tables[0]} is not readable as a table ({error})") from None
    if not rows:
        raise UserError(f"{tables[0]} has no rows")
    return tables[0], rows


def chaoyang(data: Data) -> Source:
    """Chaoyang colon slides (Zhu et al. 2021): train.json and test.json list pictures with labels of four classes."""
    tree = holding(Path(data.path), "train.json")
    return Source(CHAOYANG, {split: listed(tree, _entries(tree, f"{split}.json")) for split in ("train", "test")})


def _entries(tree: Tree, file: str) -> list[tuple[str, int]]:
    try:
        return [(str(entry["name"]), int(entry["label"])) for entry in json.loads(tree.required(file))]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{tree.path}: {file} is no list of names and labels ({type(error).__name__}: {error})") from None

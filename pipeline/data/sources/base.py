"""What every reader gives: the classes, and the pictures of each split, one at a time."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.config import UserError
from pipeline.data.decode import Unreadable
from pipeline.data.sources.tree import Tree


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


def listed(tree: Tree, labelled: Iterable[tuple[str, int]]) -> Iterator[Picture]:
    """The pictures of a list of names and labels, in the order in which the tree reads fastest, missing ones last."""
    place = {name: index for index, name in enumerate(tree.names)}
    for name, label in sorted(labelled, key=lambda entry: place.get(entry[0], len(place))):
        yield Picture(name, label, partial(tree.read if name in place else _absent, name))


def _absent(_name: str) -> bytes:
    raise Unreadable("no such file")


def class_names(values: Sequence[Any], *, where: str) -> list[str]:
    """The distinct values of a column of labels, sorted: as numbers where all are whole numbers, else as text."""
    _refuse_empty(values, where)
    names = {str(value) for value in values}
    return sorted(names, key=int if all(re.fullmatch(r"-?[0-9]+", name) for name in names) else str)


def to_labels(values: Sequence[Any], classes: list[str], *, where: str) -> list[int]:
    """The index of each value among the classes. Raises UserError for one that is empty or not among them."""
    _refuse_empty(values, where)
    index = {name: label for label, name in enumerate(classes)}
    if unknown := {str(value) for value in values} - index.keys():
        raise UserError(f"{where}: label '{min(unknown)}' is not among the classes {', '.join(classes[:10])}")
    return [index[str(value)] for value in values]


def _refuse_empty(values: Sequence[Any], where: str) -> None:
    if empty := [row for row, value in enumerate(values) if value in (None, "")]:
        raise UserError(f"{where}: {len(empty)} rows have no label, the first is row {empty[0]}")


def at_least_two(classes: list[str], *, where: str) -> list[str]:
    """The classes, or a UserError where there is nothing to tell apart."""
    if len(classes) < 2:
        raise UserError(f"{where} holds {len(classes)} classes; at least 2 are needed")
    return classes

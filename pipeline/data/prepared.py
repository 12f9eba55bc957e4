"""The prepared data set on disk: one Arrow IPC file per split, memory-mapped, and a card with the facts.

Any row can be reached at once, the processes of a node share one copy, and a split may be larger than memory. A picture
is stored in one of two forms. With a size: fixed-size binary (C order of H, W, C, uint8), the shape in the schema's
metadata, in one record batch, so that all pictures are one array. Without: struct<bytes, path>, the file as its owner
encoded it, as Hugging Face has it.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import files
from pipeline.config import UserError

SPLITS = ("train", "validation", "test")
BYTES_PER_BATCH = 2**26  # of encoded pictures in a record batch


@dataclass(frozen=True)
class Split:
    """The pictures of one split. Nothing is read before it is used; no array can be written to."""

    table: pa.Table

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(H, W, C) of every picture, or None where each is as its owner encoded it."""
        shape = (self.table.schema.metadata or {}).get(b"shape")
        return tuple(json.loads(shape)) if shape else None

    @property
    def stored_size(self) -> int | None:
        """Height and width in pixels, or None where each picture is as its owner encoded it."""
        return self.image_shape[0] if self.image_shape else None

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) int64."""
        return self.table["label"].to_numpy()

    @cached_property
    def names(self) -> list[str]:
        """How the owner of the pictures would find them."""
        return self.table["name"].to_pylist()

    @cached_property
    def pixels(self) -> np.ndarray:
        """(N, H, W, C) uint8, a view of the file. Only where there is a stored_size."""
        assert self.image_shape
        image = self.table["image"].chunk(0)
        size = int(np.prod(self.image_shape))
        return np.frombuffer(image.buffers()[1], np.uint8, len(image) * size, image.offset * size).reshape(
            -1, *self.image_shape
        )

    def encoded(self, row: int) -> bytes:
        """The file of one picture, as its owner encoded it. Only where there is no stored_size."""
        return self.table["image"][row]["bytes"].as_py()


def pixel_table(pixels: np.ndarray, labels: np.ndarray, names: list[str]) -> pa.Table:
    """Pictures (N, H, W, C) uint8 as the one record batch that a split with a stored size is; pixels are not copied."""
    pixels = np.ascontiguousarray(pixels)
    size = int(np.prod(pixels.shape[1:]))
    image = pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(labels), [None, pa.py_buffer(pixels)])
    return _table(image, labels, names, {"shape": json.dumps(pixels.shape[1:])})


def encoded_tables(contents: Iterable[bytes], labels: np.ndarray, names: list[str]) -> Iterable[pa.Table]:
    """Encoded pictures as record batches of about BYTES_PER_BATCH, so that memory holds one of them."""
    first, batch, held = 0, [], 0
    for content in contents:
        batch.append(content)
        held += len(content)
        if held >= BYTES_PER_BATCH or first + len(batch) == len(labels):
            rows = slice(first, first + len(batch))
            columns = [pa.array(batch, pa.binary()), pa.array(names[rows], pa.string())]
            image = pa.StructArray.from_arrays(columns, ["bytes", "path"])
            yield _table(image, labels[rows], names[rows], {})
            first, batch, held = rows.stop, [], 0


def write_split(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write tables of the same schema as one split, whole or not at all."""
    with files.replacing(path) as aside:
        writer = None
        for table in tables:
            writer = writer or pa.ipc.new_file(str(aside), table.schema)
            writer.write_table(table)
        assert writer, "a split holds at least one picture"
        writer.close()


def read_split(path: Path) -> Split:
    """Open a split that `write_split` wrote. Raises UserError where the file is missing, damaged or something else."""
    try:
        split = Split(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
        if split.table.column_names != ["image", "label", "name"] or (split.stored_size and not split.pixels.size):
            raise ValueError
        return split
    except FileNotFoundError:
        raise UserError(f"{path} is missing; `dvc repro prepare` makes it") from None
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}); `dvc repro prepare` makes it anew") from None


def read_card(folder: Path) -> dict[str, Any]:
    """The facts on a prepared data set."""
    path = folder / "card.json"
    return files.read_json(path, missing=lambda: UserError(f"{path} is missing; `dvc repro prepare` makes it"))


def describe(card: dict[str, Any]) -> str:
    """The size of the pictures in words."""
    return " x ".join(map(str, card["image_shape"])) if card["image_shape"] else "each of its own size"


def fingerprint(splits: Iterable[Split]) -> str:
    """16 hexadecimal digits over all pictures and labels of the splits, in their order."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(f"{len(split)} {split.image_shape}".encode())
        if split.stored_size:
            digest.update(split.pixels.data)
        else:
            for row in range(len(split)):
                digest.update(hashlib.sha256(split.encoded(row)).digest())
        digest.update(np.ascontiguousarray(split.labels).data)
    return digest.hexdigest()[:16]


def _table(image: pa.Array, labels: np.ndarray, names: list[str], metadata: dict[str, str]) -> pa.Table:
    columns = [image, pa.array(labels, pa.int64()), pa.array(names, pa.string())]
    return pa.table(columns, names=["image", "label", "name"]).replace_schema_metadata(metadata)

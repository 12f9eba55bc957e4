"""Parquet files as Hugging Face writes them: encoded pictures in a column of struct<bytes, path> or of plain binary."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Data, UserError
from pipeline.data.decode import Unreadable
from pipeline.data.sources.base import Picture, Source, at_least_two, class_names, to_labels
from pipeline.data.sources.tables import SPLIT_OF

ROWS_AT_ONCE = 256
LABELS = ("label", "labels", "target", "class")  # column names that need no setting


def parquet(data: Data) -> Source:
    """One file, or a folder of shards whose names or folders say the split (train-00000-of-00002.parquet)."""
    shards = _shards(Path(data.path))
    first = shards["train"][0]
    schema = _opened(first).schema_arrow
    image = _image_column(schema, data)
    label = _label_column(schema, data, image)
    values = {path: _column(path, label) for paths in shards.values() for path in paths}
    named = _features(schema).get(label, {}).get("names")
    classes = named or class_names([value for column in values.values() for value in column], where=f"{first}, column {label}")
    at_least_two(classes, where=f"{data.path}, column {label}")
    labels = {path: _labels(column, classes, numbered=bool(named), path=path) for path, column in values.items()}
    splits = {split: _pictures({path: labels[path] for path in paths}, image) for split, paths in shards.items()}
    return Source(classes, splits, grey=True)


def _shards(path: Path) -> dict[str, list[Path]]:
    """The files of each split; one file, or files that name no split, are all train."""
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise UserError(f"data.path '{path}' is no .parquet file and no folder that holds some")
    found = {file: _split_of(file.relative_to(path) if file != path else Path(file.name)) for file in files}
    if len(files) == 1 or not any(found.values()):
        return {"train": files}
    if unclear := [file for file, split in found.items() if split is None]:
        raise UserError(
            f"{unclear[0]}: its name says no split, others of data.path '{path}' do; name it train-..., for instance"
        )
    if "train" not in found.values():
        raise UserError(f"data.path '{path}' holds no train file, only {', '.join(file.name for file in files[:5])}")
    return {split: [file for file in files if found[file] == split] for split in dict.fromkeys(found.values()) if split}


def _split_of(name: Path) -> str | None:
    words = [part.lower() for part in name.parent.parts] + [name.name.lower().split("-")[0].split(".")[0].split("_")[0]]
    return next((SPLIT_OF[word] for word in words if word in SPLIT_OF), None)


def _opened(path: Path) -> Any:
    return _guarded(path, lambda: pq.ParquetFile(path))


def _column(path: Path, name: str) -> list[Any]:
    if name not in (columns := _opened(path).schema_arrow.names):
        raise UserError(f"{path} has no column '{name}', only {', '.join(columns)}")
    return _guarded(path, lambda: pq.read_table(path, columns=[name])[name].to_pylist())


def _guarded(path: Path, read: Any) -> Any:
    try:
        return read()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())[:200]}); fetch it anew") from None


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What Hugging Face's metadata say of each column."""
    try:
        return json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}


def _image_column(schema: pa.Schema, data: Data) -> str:
    return _chosen("image", data.image_column, [field.name for field in schema if _holds_bytes(field.type)], schema)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return "bytes" in [field.name for field in kind]
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _label_column(schema: pa.Schema, data: Data, image: str) -> str:
    fitting = [field.name for field in schema if field.name != image and _says_a_class(field.type)]
    usual = [name for name in fitting if name in LABELS]
    marked = [name for name in fitting if _features(schema).get(name, {}).get("_type") == "ClassLabel"]
    return _chosen("label", data.label_column, usual or marked or fitting, schema)


def _says_a_class(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _chosen(what: str, setting: str | None, fitting: list[str], schema: pa.Schema) -> str:
    """The column that the setting names, or the only one that fits."""
    if setting and setting not in schema.names:
        raise UserError(f"data.{what}_column is '{setting}'; there are {', '.join(schema.names)}")
    if not setting and len(fitting) != 1:
        which = f"{', '.join(fitting)} could each be" if fitting else f"none of {', '.join(schema.names)} seems to be"
        raise UserError(f"{which} the {what} column; name it in data.{what}_column")
    return setting or fitting[0]


def _labels(column: list[Any], classes: list[str], *, numbered: bool, path: Path) -> list[int]:
    """numbered: whole numbers index the classes, and are checked against them later; else they are their names."""
    if numbered and all(isinstance(value, int) for value in column):
        return column
    return to_labels(column, classes, where=str(path))


def _pictures(labels: dict[Path, list[int]], image: str) -> Iterator[Picture]:
    for path, column in labels.items():
        rows = enumerate(zip(_images(path, image), column, strict=True))
        yield from (Picture(_name(path, row, entry), label, partial(_content, entry)) for row, (entry, label) in rows)


def _images(path: Path, image: str) -> Iterator[Any]:
    batches = _opened(path).iter_batches(ROWS_AT_ONCE, columns=[image])
    while (batch := _guarded(path, lambda: next(batches, None))) is not None:
        yield from batch.column(0).to_pylist()


def _name(path: Path, row: int, entry: Any) -> str:
    inside = entry.get("path") if isinstance(entry, dict) else None
    return f"{path.name} {row}" + (f" ({inside})" if inside else "")


def _content(entry: Any) -> bytes:
    content = entry.get("bytes") if isinstance(entry, dict) else entry
    if not isinstance(content, bytes):
        raise Unreadable("no picture, null")
    return content

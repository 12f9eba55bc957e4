"""Outputs that are whole or absent: written aside, then renamed."""

import csv
import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config import UserError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside `path` for a new file or folder, which becomes `path` only when the block ends well.

    Raises UserError where the disk has no room.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield aside
        if path.is_dir():
            shutil.rmtree(path)
        aside.replace(path)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise UserError(f"no room to write {path} ({os.strerror(error.errno)}); free some, and run it again") from None
        raise
    finally:
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)


def in_project(folder: str) -> Path:
    """An absolute path below the project's root. The copies that `dvc exp run --temp` works in share the original's."""
    return Path(os.environ.get("DVC_ROOT", "."), folder).resolve()


def write(path: Path, content: str | bytes) -> None:
    """Replace `path` in one step, so that a killed process leaves the old content or the new."""
    with replacing(path) as aside:
        aside.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_json(path: Path, value: Any) -> None:
    """Sorted keys and a last newline: equal values give equal files."""
    write(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """A header and a line per row, which may lack some of the keys. Without rows the file is empty."""
    text = io.StringIO()
    if rows:
        keys = dict.fromkeys(key for row in rows for key in row)
        writer = csv.DictWriter(text, fieldnames=list(keys), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write(path, text.getvalue())


def read_json(path: Path, *, missing: Callable[[], Exception]) -> dict[str, Any]:
    """The object in a JSON file of ours.

    Raises what `missing` makes where there is no such file, and UserError where it holds anything else.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise missing() from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged; `dvc repro` makes it anew")
    return found

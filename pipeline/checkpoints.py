"""Where the checkpoints of a run lie: in a folder, or in an object store that a URI names (s3://bucket/folder)."""

import copy
import logging
import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from pyarrow import fs

from pipeline import files
from pipeline.config import UserError

logger = logging.getLogger(__name__)

KEPT = 2
MARKER = b"espalier"


def inside(place: str, *names: str) -> str:
    """The place below another one; the options of a URI stay at its end."""
    if "://" not in place:
        return str(files.in_project(place).joinpath(*names))
    path, mark, options = place.partition("?")
    return "/".join([path.rstrip("/"), *names]) + mark + options


class Checkpoints:
    """One file an epoch, whole or absent; the newest two are kept."""

    def __init__(self, place: str) -> None:
        self._place = place

    @cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        return _open(self._place)  # not before it is used: an object store may be out of reach from here

    @property
    def _files(self) -> fs.FileSystem:
        return self._opened[0]

    @property
    def _folder(self) -> str:
        return self._opened[1]

    def check(self) -> None:
        """Write, read and delete a marker. Raises UserError where that does not work, before time is spent on a training."""
        name = f".marker-{secrets.token_hex(4)}"
        self.mark(name)
        self.unmark(name)

    def mark(self, name: str) -> None:
        """Write a marker. Raises UserError where that does not work from here."""
        with self._usable():
            self._files.create_dir(self._folder)
            with self._files.open_output_stream(f"{self._folder}/{name}") as file:
                file.write(MARKER)

    def unmark(self, name: str) -> None:
        """Read and delete a marker, which another node may have written. Raises UserError where it is not there."""
        path = f"{self._folder}/{name}"
        with self._usable():
            if (found := self._found(path)) == MARKER:
                self._files.delete_file(path)
        if found != MARKER:
            lacking = "does not give back what is written to it; all nodes must share it"
            raise UserError(f"{self._named} {lacking} (from {platform.node()})")

    def _found(self, path: str) -> bytes | None:
        try:
            with self._files.open_input_file(path) as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._named} cannot be used from {platform.node()}: {' '.join(str(error).split())}") from None

    @property
    def _named(self) -> str:
        return f"the place of the checkpoints, {_shown(self._place)} (cluster.checkpoints, or cluster.scratch),"

    def newest_first(self) -> Iterator[bytes]:
        """The contents of the checkpoints that there are."""
        for path in reversed(self._paths()):
            with self._files.open_input_file(path) as file:
                yield file.read()

    def newest(self) -> str:
        """Which one is the newest, in words. A place that is out of reach is one, too: nothing is raised."""
        try:
            paths = self._paths()
        except (OSError, UserError) as error:
            return f"not known ({' '.join(str(error).split())})"
        return f"epoch {int(Path(paths[-1]).stem[6:])} in {_shown(self._place)}" if paths else "none yet"

    def write(self, epoch: int, content: bytes) -> None:
        """Keep the state after an epoch. Raises UserError where the place cannot be written to."""
        aside, path = f"{self._folder}/.writing", f"{self._folder}/epoch-{epoch:05}.pt"
        try:
            self._files.create_dir(self._folder)
            with self._files.open_output_stream(aside) as file:
                file.write(content)
            self._files.move(aside, path)
            for old in self._paths()[:-KEPT]:
                self._files.delete_file(old)
        except OSError as error:
            with suppress(OSError):
                self._files.delete_file(aside)
            why = " ".join(str(error).split())
            raise UserError(f"no checkpoint of epoch {epoch} in {_shown(self._place)} ({why}); older ones stay") from None

    def delete(self) -> None:
        """Remove them all; where that does not work they stay, and a line says so."""
        try:
            if self._files.get_file_info(self._folder).type == fs.FileType.Directory:
                self._files.delete_dir(self._folder)
        except (OSError, UserError) as error:
            logger.warning("checkpoints of a finished run stay in %s (%s)", _shown(self._place), " ".join(str(error).split()))

    def _paths(self) -> list[str]:
        found = self._files.get_file_info(fs.FileSelector(self._folder, allow_not_found=True))
        return sorted(each.path for each in found if each.base_name.startswith("epoch-"))


def _open(place: str) -> tuple[fs.FileSystem, str]:
    if "://" not in place:
        return fs.LocalFileSystem(), place
    try:
        opened, path = fs.FileSystem.from_uri(place)
    except (ValueError, OSError) as error:
        why = str(error).replace(place, _shown(place))
        raise UserError(
            f"cluster.checkpoints '{_shown(place)}': {why}; give a folder, or a URI such as s3://bucket/folder"
        ) from None
    # A copy tries three times and not for minutes: it is made by pyarrow's own constructor, with its usual S3RetryStrategy.
    return (copy.copy(opened) if isinstance(opened, fs.S3FileSystem) else opened), path


def _shown(place: str) -> str:
    """A place as it may be told: without the options of its URI, which can hold secrets."""
    return place.partition("?")[0] if "://" in place else place

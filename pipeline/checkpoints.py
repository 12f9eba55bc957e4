"""Where the checkpoints of a run lie: in a folder, or in an object store that a URI names (s3://bucket/folder)."""

import logging
import platform
import secrets
from collections.abc import Iterator
from functools import cached_property

from pyarrow import fs

from pipeline.config import UserError

logger = logging.getLogger(__name__)

KEPT = 2


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
        marker, content = f"{self._folder}/.marker-{secrets.token_hex(4)}", b"espalier"
        try:
            self._files.create_dir(self._folder)
            with self._files.open_output_stream(marker) as file:
                file.write(content)
            with self._files.open_input_file(marker) as file:
                found = file.read()
            self._files.delete_file(marker)
        except OSError as error:
            raise UserError(f"{self._named()} cannot be used from {platform.node()}: {' '.join(str(error).split())}") from None
        if found != content:
            raise UserError(f"{self._named()} does not give back what is written to it (from {platform.node()})")

    def _named(self) -> str:
        return f"the place of the checkpoints, {self._place} (cluster.checkpoints, or cluster.scratch),"

    def newest_first(self) -> Iterator[bytes]:
        """The contents of the checkpoints that there are."""
        for path in reversed(self._paths()):
            with self._files.open_input_file(path) as file:
                yield file.read()

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
            raise UserError(f"no checkpoint of epoch {epoch} in {self._place} ({error}); older ones stay") from None

    def delete(self) -> None:
        """Remove them all; where that does not work they stay, and a line says so."""
        try:
            if self._files.get_file_info(self._folder).type == fs.FileType.Directory:
                self._files.delete_dir(self._folder)
        except (OSError, UserError) as error:
            logger.warning("checkpoints of a finished run stay in %s (%s)", self._place, " ".join(str(error).split()))

    def _paths(self) -> list[str]:
        found = self._files.get_file_info(fs.FileSelector(self._folder, allow_not_found=True))
        return sorted(each.path for each in found if each.base_name.startswith("epoch-"))


def _open(place: str) -> tuple[fs.FileSystem, str]:
    if "://" not in place:
        return fs.LocalFileSystem(), place
    try:
        return fs.FileSystem.from_uri(place)
    except (ValueError, OSError) as error:
        raise UserError(f"cluster.checkpoints '{place}': {error}; give a folder, or a URI such as s3://bucket/folder") from None

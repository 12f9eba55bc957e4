"""Files by their relative names, in a folder or in an archive: .zip, .tar, .tar.gz, .tgz. Nothing is ever extracted."""

import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.config import UserError
from pipeline.data.decode import Unreadable

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
LARGEST_FILE = 2**30  # bytes of one file in an archive
FAILURES = (OSError, EOFError, KeyError, RuntimeError, zlib.error, zipfile.BadZipFile, tarfile.TarError)


@dataclass(frozen=True)
class Tree:
    """path: what was opened. names: of files, and of folders with a last "/", in the order that reads fastest."""

    path: Path
    names: list[str]
    contents: Callable[[str], bytes]

    def read(self, name: str) -> bytes:
        """The content of a file. Raises Unreadable."""
        try:
            return self.contents(name)
        except FAILURES as error:
            raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from None

    def required(self, name: str) -> bytes:
        """The content of a file without which the source is not what it should be. Raises UserError."""
        try:
            return self.read(name)
        except Unreadable as error:
            raise UserError(f"{self.path}: {name} is missing or damaged ({error})") from None

    def text(self, name: str) -> str:
        """The content of a required file that is UTF-8 text."""
        try:
            return self.required(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: {name} is not readable as text in UTF-8 ({error.reason})") from None

    def below(self, folder: str) -> "Tree":
        """What lies in a folder ("x/y/", or "" for all), by its name from there."""
        names = [name[len(folder) :] for name in self.names if name.startswith(folder) and name != folder]
        return Tree(self.path, names, lambda name: self.contents(folder + name))

    def folders(self) -> list[str]:
        """The names of the folders at the top, sorted."""
        return sorted({name.split("/")[0] for name in self.names if "/" in name})

    def find(self, name: str) -> str | None:
        """The folder ("x/y/") of the file of this name that lies nearest to the top."""
        found = [entry[: -len(name)] for entry in self.names if f"/{entry}".endswith(f"/{name}")]
        return min(found, key=lambda folder: (folder.count("/"), folder), default=None)


def open_tree(path: Path) -> Tree:
    """A folder or an archive. Raises UserError where it is neither, is damaged or names files outside of itself."""
    if not path.exists():
        raise UserError(f"data.path '{path}' does not exist; give a folder or an archive ({', '.join(ARCHIVES)})")
    try:
        if path.is_dir():
            return _folder(path)
        if zipfile.is_zipfile(path):
            return _zip(path)
        if tarfile.is_tarfile(path):
            return _tar(path)
    except FAILURES as error:
        raise UserError(f"data.path '{path}' is damaged ({' '.join(str(error).split()) or type(error).__name__})") from None
    raise UserError(f"data.path '{path}' is neither a folder nor an archive ({', '.join(ARCHIVES)})")


def holding(path: Path, *files: str) -> Tree:
    """Where one of these files lies: in the folder or archive, however deep, or in an archive that the folder holds."""
    inside = [entry for entry in sorted(path.iterdir()) if entry.name.endswith(ARCHIVES)] if path.is_dir() else []
    for tree in map(open_tree, [path, *inside]):
        for file in files:
            if (folder := tree.find(file)) is not None:
                return tree.below(folder)
    raise UserError(f"data.path '{path}' holds no {' or '.join(files)}, neither in a folder nor in an archive")


def _folder(root: Path) -> Tree:
    def contents(name: str) -> bytes:
        path = root / name
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            raise OSError("a link out of the folder")
        if not path.is_file():
            raise OSError("a link to nothing" if path.is_symlink() else "no plain file")
        return path.read_bytes()

    return Tree(root, list(_walk(root)), contents)


def _walk(root: Path) -> Iterable[str]:
    for parent, folders, files in os.walk(root, onerror=_raise):
        folders[:] = sorted(name for name in folders if _shown(name))
        below = Path(parent).relative_to(root)
        for name in folders:
            if Path(parent, name).is_symlink():
                raise UserError(f"data.path '{root}': {below / name} is a link to a folder; put the folder itself there")
            yield f"{(below / name).as_posix()}/"
        yield from ((below / name).as_posix() for name in sorted(files) if _shown(name))


def _raise(error: OSError) -> None:
    raise error


def _zip(path: Path) -> Tree:
    archive = zipfile.ZipFile(path)

    def contents(name: str) -> bytes:
        _refuse_large(archive.getinfo(name).file_size)
        return archive.read(name)

    return Tree(path, _safe(path, archive.namelist()), contents)


def _tar(path: Path) -> Tree:
    archive = tarfile.open(path)  # noqa: SIM115, it stays open as long as the tree is read
    members = {_clean(member.name) + "/" * member.isdir(): member for member in archive.getmembers() if not member.isdev()}

    def contents(name: str) -> bytes:
        _refuse_large(members[name].size)
        file = archive.extractfile(members[name])  # a link is followed within the archive only
        return file.read() if file else b""

    return Tree(path, _safe(path, members), contents)


def _clean(name: str) -> str:
    return name.removeprefix("./").rstrip("/")


def _safe(path: Path, names: Iterable[str]) -> list[str]:
    """The names without litter. Raises UserError where one leads out of the archive."""
    listed = []
    for name in names:
        parts = PurePosixPath(name).parts
        if ".." in parts or name.startswith("/") or "\\" in name:
            raise UserError(f"{path}: the archive names '{name}', outside of itself; refused")
        if all(map(_shown, parts)) and parts:
            listed.append(name)
    return listed


def _shown(part: str) -> bool:
    return not part.startswith(".") and part != "__MACOSX"


def _refuse_large(size: int) -> None:
    if size > LARGEST_FILE:
        raise OSError(f"{size:,} bytes, more than {LARGEST_FILE:,}")

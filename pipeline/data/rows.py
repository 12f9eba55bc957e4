"""Every picture of a source, read once: what is known of it, and its stored form in a scratch file.

Memory holds the facts (under 1 kB a picture, python -m benchmarks.prepare) and one shard of pictures, never more of them.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from pipeline.data import decode
from pipeline.data.decode import Encoding, Unreadable
from pipeline.data.sources import Picture

SHARD_PICTURES, SHARD_BYTES = 512, 2**25  # in memory at once; whichever is reached first
FACTS = np.dtype(
    [
        ("digest", "S16"),  # of the picture's content, 16 bytes
        ("label", "i8"),
        ("start", "i8"),  # in the scratch file, bytes
        ("length", "i8"),
        ("height", "i4"),  # pixels, upright, before any resizing
        ("width", "i4"),
        ("grey", "?"),
        ("format", "S8"),
        ("mode", "S8"),
        ("quality", "i2"),  # of a JPEG, estimated; else -1
        ("subsampling", "S8"),  # of a JPEG's colours
        ("mean", "f8", 3),  # of the stored pixels, in [0, 1]
        ("square", "f8", 3),  # mean of their squares
    ]
)
VALUES = np.arange(256) / 255


@dataclass(frozen=True)
class Rows:
    """N pictures: their facts (N,) of dtype FACTS, and their names."""

    facts: np.ndarray
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Any) -> "Rows":
        """The given rows, in that order."""
        return Rows(self.facts[rows], [self.names[row] for row in rows])


def repeated(splits: dict[str, Rows]) -> dict[str, list[int]]:
    """Of each split the rows whose content is there more than once, in that split or in several."""
    digests = np.concatenate([rows.facts["digest"] for rows in splits.values()])
    values, counts = np.unique(digests, return_counts=True)
    several = values[counts > 1]
    return {name: np.flatnonzero(np.isin(rows.facts["digest"], several)).tolist() for name, rows in splits.items()}


@dataclass
class Scratch:
    """A file of pictures as they will be stored, one after the other. image_size None: as their owner encoded them."""

    file: BinaryIO
    image_size: int | None
    unreadable: list[dict[str, str]] = field(default_factory=list)

    def add(self, pictures: Iterable[Picture]) -> Rows:
        """Decode and add pictures. The rows are ordered by content, so that no order of files can matter."""
        facts, names = [np.zeros(0, FACTS)], []
        store = partial(_stored, image_size=self.image_size)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow lets threads run beside each other while it decodes
            for shard in self._shards(pictures):
                kept = []
                for (picture, _), made in zip(shard, pool.map(store, shard), strict=True):
                    if isinstance(made, Unreadable):
                        self._skip(picture, made)
                    else:
                        kept.append(self._append(*made))
                        names.append(printable(picture.name))
                facts.append(np.array(kept, FACTS))
        rows = Rows(np.concatenate(facts), names)
        return rows.take(sorted(range(len(rows)), key=lambda row: (rows.facts["digest"][row], names[row])))

    def stored(self, rows: Rows, *, channels: int) -> Iterator[bytes]:
        """What was stored of these rows, one after the other; grey pixels are repeated where there are three channels."""
        self.file.flush()
        for start, length, grey in rows.facts[["start", "length", "grey"]].tolist():
            content = os.pread(self.file.fileno(), length, start)
            if self.image_size and grey and channels == 3:
                content = np.frombuffer(content, np.uint8).repeat(3).tobytes()
            yield content

    def _shards(self, pictures: Iterable[Picture]) -> Iterator[list[tuple[Picture, bytes]]]:
        """Pictures with their contents, as many as may be in memory at once."""
        shard: list[tuple[Picture, bytes]] = []
        held = 0
        for picture in pictures:
            try:
                shard.append((picture, picture.read()))
            except Unreadable as error:
                self._skip(picture, error)
                continue
            held += len(shard[-1][1])
            if len(shard) == SHARD_PICTURES or held >= SHARD_BYTES:
                yield shard
                shard, held = [], 0
        yield shard

    def _skip(self, picture: Picture, error: Unreadable) -> None:
        self.unreadable.append({"name": printable(picture.name), "reason": str(error)})

    def _append(self, content: bytes, facts: dict[str, Any]) -> tuple[Any, ...]:
        place = {"start": self.file.tell(), "length": len(content)}
        self.file.write(content)
        return tuple((facts | place)[name] for name in FACTS.names or ())


def _stored(labelled: tuple[Picture, bytes], *, image_size: int | None) -> tuple[bytes, dict[str, Any]] | Unreadable:
    """A picture as it will be stored, and the facts on it; or why it cannot be."""
    picture, content = labelled
    try:
        image, encoding = _from_pixels(content, picture.shape) if picture.shape else decode.decode(content)
    except Unreadable as error:
        return error
    stored = decode.fit(image, image_size)
    mean, square = _moments(stored)
    facts = {
        "digest": hashlib.blake2b(content, digest_size=16).digest(),
        "label": picture.label,
        "height": image.height,
        "width": image.width,
        "grey": image.mode == "L",
        "mean": mean,
        "square": square,
        **asdict(encoding),
    }
    if image_size:
        return stored.tobytes(), facts
    return _png(image) if picture.shape else content, facts


def _from_pixels(content: bytes, shape: tuple[int, int, int]) -> tuple[Image.Image, Encoding]:
    array = np.frombuffer(content, np.uint8).reshape(shape)
    image = Image.fromarray(array[..., 0] if shape[2] == 1 else array)
    return image, Encoding("pixels", image.mode)


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _moments(image: Image.Image) -> np.ndarray:
    """(2, 3) mean and mean square of the channels of pixels / 255; those of grey three times."""
    shares = np.array(image.histogram()).reshape(-1, 256) / (image.width * image.height)
    return np.broadcast_to(np.stack([shares @ VALUES, shares @ VALUES**2]), (2, 3))


def printable(name: str) -> str:
    """A file's name without bytes that are no text, which neither JSON nor Arrow would take."""
    return name.encode("utf-8", "backslashreplace").decode()

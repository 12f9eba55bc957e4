"""From the bytes of a picture file to pixels: the one place where pictures are decoded."""

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin, UnidentifiedImageError

LARGEST_PIXELS = 89_478_485  # of a picture that is decoded: Pillow's own threshold, 256 MiB of RGB
SUBSAMPLINGS = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}


class Unreadable(Exception):
    """A picture that cannot be decoded; the text says why."""


@dataclass(frozen=True)
class Encoding:
    """How a picture's owner has encoded it. quality: an estimate, of JPEGs only, else -1."""

    format: str
    mode: str
    quality: int = -1
    subsampling: str = ""


def pixels(content: bytes, *, channels: int, image_size: int | None = None) -> np.ndarray:
    """(h, w, channels) uint8; with an image_size, centre-cropped to a square and resized to it. Raises Unreadable."""
    image, _ = decode(content)
    return to_array(fit(image, image_size), channels=channels)


def decode(content: bytes) -> tuple[Image.Image, Encoding]:
    """The picture in mode L (grey) or RGB: turned upright, on white where transparent. Raises Unreadable.

    16-bit grey keeps its upper eight bits, palettes and CMYK become RGB, black and white becomes grey.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > LARGEST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, more than {LARGEST_PIXELS:,}")
            return _plain(ImageOps.exif_transpose(image)), _encoding(image)
    except UnidentifiedImageError:
        raise Unreadable("not a picture") from None
    except Exception as error:  # of damaged files Pillow raises TypeError, struct.error and others besides its own
        raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from None


def fit(image: Image.Image, image_size: int | None) -> Image.Image:
    """The largest square in the middle, at (image_size, image_size) pixels: bicubic, antialiased. None: unchanged."""
    if image_size is None or image.size == (image_size, image_size):
        return image
    return ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)


def to_array(image: Image.Image, *, channels: int) -> np.ndarray:
    """(h, w, channels) uint8 of a picture in mode L or RGB."""
    return np.asarray(image.convert({1: "L", 3: "RGB"}[channels])).reshape(image.height, image.width, channels)


def _plain(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # which convert() would clip to white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {image.mode}), whose range the file does not tell")
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _encoding(image: Any) -> Encoding:
    if image.format not in ("JPEG", "MPO"):
        return Encoding(image.format or "", image.mode)
    subsampling = SUBSAMPLINGS.get(JpegImagePlugin.get_sampling(image), "")
    luminance = next(iter(image.quantization.values()), None)
    return Encoding("JPEG", image.mode, jpeg_quality(tuple(luminance)) if luminance else -1, subsampling)


@lru_cache(maxsize=1024)
def jpeg_quality(luminance: tuple[int, ...]) -> int:
    """The quality (1 to 100) at which libjpeg would use the quantization table nearest to this one of 64 numbers."""
    return int(np.abs(_libjpeg_tables() - np.array(luminance)).sum(1).argmin()) + 1


@lru_cache(maxsize=1)
def _libjpeg_tables() -> np.ndarray:
    """(100, 64) the luminance tables of the qualities 1 to 100."""
    return np.array([_libjpeg_table(quality) for quality in range(1, 101)])


def _libjpeg_table(quality: int) -> Any:
    content = io.BytesIO()
    Image.new("L", (8, 8)).save(content, "JPEG", quality=quality)
    return Image.open(content).quantization[0]  # type: ignore[attr-defined]

"""Pictures made worse by noise, blur, low contrast and JPEG at five strengths, as cameras and networks make them.

After Hendrycks and Dietterich 2019, who made theirs for pictures of 224 px; here blur goes with the size of the picture.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

NOISE = (0.04, 0.08, 0.12, 0.18, 0.26)  # standard deviation, of the range of pixels
BLUR = (0.015, 0.02, 0.03, 0.045, 0.06)  # standard deviation, of the picture's height
CONTRAST = (0.6, 0.4, 0.3, 0.2, 0.1)  # of the distance to the picture's mean
QUALITY = (50, 25, 18, 10, 7)  # of JPEG
STRENGTHS = range(1, 6)


def corrupt(pixels: np.ndarray, kind: str, strength: int, *, seed: int = 0) -> np.ndarray:
    """Pictures (N, H, W, C) uint8, made worse by a kind of CORRUPTIONS at a strength from 1 to 5."""
    return CORRUPTIONS[kind](pixels, strength - 1, seed)


def _noise(pixels: np.ndarray, level: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng([seed, level]).standard_normal(pixels.shape, np.float32)
    return _clipped(pixels + 255 * NOISE[level] * drawn)


def _contrast(pixels: np.ndarray, level: int, _seed: int) -> np.ndarray:
    mean = pixels.mean((1, 2), keepdims=True)
    return _clipped(mean + CONTRAST[level] * (pixels - mean))


def _blur(pixels: np.ndarray, level: int, _seed: int) -> np.ndarray:
    how = ImageFilter.GaussianBlur(BLUR[level] * pixels.shape[1])
    return _each(pixels, lambda image: image.filter(how))


def _jpeg(pixels: np.ndarray, level: int, _seed: int) -> np.ndarray:
    def coded(image: Image.Image) -> Image.Image:
        content = io.BytesIO()
        image.save(content, "JPEG", quality=QUALITY[level])
        return Image.open(content)

    return _each(pixels, coded)


def _each(pixels: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    shape = pixels.shape[1:]
    flat = pixels[..., 0] if shape[2] == 1 else pixels
    return np.stack([np.asarray(change(Image.fromarray(image))).reshape(shape) for image in flat])


def _clipped(values: np.ndarray) -> np.ndarray:
    return values.round().clip(0, 255).astype(np.uint8)


CORRUPTIONS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "jpeg": _jpeg,
}

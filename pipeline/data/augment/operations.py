"""What the operations of the policies do to pixels, each picture by its own argument.

The meaning is Pillow's, whose operations AutoAugment, RandAugment and TrivialAugment were made of. There are three
families, and a batch passes each of them once, whatever its pictures drew:

AFFINE   the pixels move; bilinear, where timm and torchvision choose among nearest, bilinear and bicubic
BLENDS   a mixture of the picture and a poorer version of it, or, from factor 1 on, its exaggeration
TABLES   every value of a channel is looked up in 256 others

Adding an operation is a function here and an entry in the dict of its family.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def apply(images: Tensor, names: np.ndarray, arguments: np.ndarray, fill: Tensor) -> Tensor:
    """Each of the pictures (B, C, H, W) uint8 goes through the operation that it drew; "identity" leaves it.

    names (B,), arguments (B,); fill (C,): the colour of what comes in from outside of the picture.
    """
    result = images.clone()
    for family, members in ((_move, AFFINE), (_blend, BLENDS), (_look_up, TABLES)):
        drawn = np.flatnonzero(np.logical_or.reduce([names == name for name in members]))
        if len(drawn):
            rows = torch.from_numpy(drawn).to(images.device)
            result[rows] = family(images.index_select(0, rows), names[drawn], arguments[drawn], fill)
    return result


def _each(names: np.ndarray, members: Iterable[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Those of the members that some pictures drew, with the rows of these pictures."""
    for name in members:
        if len(drawn := np.flatnonzero(names == name)):
            yield name, torch.from_numpy(drawn).to(device)


# Affine. A matrix (2, 3) leads from a point (x, y, 1) of the new picture to where its colour lies in the old one.


def _move(images: Tensor, names: np.ndarray, arguments: np.ndarray, fill: Tensor) -> Tensor:
    height, width = images.shape[2:]
    drawn = zip(names.tolist(), arguments.tolist(), strict=True)
    matrices = [AFFINE[name](argument, height, width) for name, argument in drawn]
    return affine(images, np.array(matrices), fill)


def affine(images: Tensor, matrices: np.ndarray, fill: Tensor) -> Tensor:
    """Pictures (B, C, H, W) uint8 whose pixels come, bilinearly, from where the matrices (B, 2, 3) lead."""
    height, width = images.shape[2:]
    shares = matrices / np.array([width, height])[:, None] * 2  # of half a side, from the middle, as grid_sample counts
    shares[:, :, 2] -= 1
    factors = torch.from_numpy(shares.astype(np.float32)).to(images.device)[..., None, None]  # (B, 2, 3, 1, 1)
    rows = torch.arange(height, device=images.device)[:, None] + 0.5
    columns = torch.arange(width, device=images.device) + 0.5
    sources = factors[:, :, 0] * columns + (factors[:, :, 1] * rows + factors[:, :, 2])  # not @: the same in any batch
    sampled = F.grid_sample(images.float(), sources.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)
    x, y = ((sources >= -1) & (sources < 1)).unbind(1)
    return torch.where((x & y)[:, None], sampled.round_(), fill[:, None, None]).to(images.dtype)


def _rotation(degrees: float, height: int, width: int) -> list[list[float]]:
    """Counter-clockwise about the middle."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return [[cosine, -sine, x - cosine * x + sine * y], [sine, cosine, y - sine * x - cosine * y]]


AFFINE: dict[str, Callable[[float, int, int], list[list[float]]]] = {  # of the argument, height and width
    "shear_x": lambda factor, height, width: [[1, factor, 0], [0, 1, 0]],
    "shear_y": lambda factor, height, width: [[1, 0, 0], [factor, 1, 0]],
    "translate_x": lambda pixels, height, width: [[1, 0, pixels], [0, 1, 0]],
    "translate_y": lambda pixels, height, width: [[1, 0, 0], [0, 1, pixels]],
    "rotate": _rotation,
}


# Blends. The argument is the factor: 0 gives the poorer version, 1 the picture, more than 1 what is far from poor.


def _blend(images: Tensor, names: np.ndarray, arguments: np.ndarray, _fill: Tensor) -> Tensor:
    own = images.float()
    poorer = torch.zeros_like(own)
    for name, rows in _each(names, BLENDS, images.device):
        poorer[rows] = BLENDS[name](own.index_select(0, rows))
    factors = torch.from_numpy(arguments.astype(np.float32)).to(images.device)[:, None, None, None]
    return own.sub_(poorer).mul_(factors).add_(poorer).clamp_(0, 255).to(images.dtype)


def _black(images: Tensor) -> Tensor:
    return torch.zeros_like(images)


def _grey(images: Tensor) -> Tensor:
    """(B, 1, H, W) luma of ITU-R BT.601, in Pillow's fixed-point form, which 32-bit floats hold exactly."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) / 2**16).floor_()[:, None]


def _mean_grey(images: Tensor) -> Tensor:
    """(B, 1, 1, 1) the mean luma, rounded."""
    total, pixels = _grey(images).sum((1, 2, 3), keepdim=True, dtype=torch.float64), images.shape[2] * images.shape[3]
    return (total / pixels + 0.5).floor().float()


def _smooth(images: Tensor) -> Tensor:
    """The mean of a pixel and its neighbours, in which it weighs five times as much, rounded; the border stays."""
    columns = images[..., :-2] + images[..., 1:-1] + images[..., 2:]
    inner = columns[:, :, :-2] + columns[:, :, 1:-1] + columns[:, :, 2:] + 4 * images[:, :, 1:-1, 1:-1]
    smoothed = images.clone()
    smoothed[:, :, 1:-1, 1:-1] = ((inner + 6.5) / 13).floor_()
    return smoothed


BLENDS: dict[str, Callable[[Tensor], Tensor]] = {  # of pictures (B, C, H, W), whole numbers as floats
    "brightness": _black,
    "color": _grey,
    "contrast": _mean_grey,
    "sharpness": _smooth,
}


# Tables. From pictures (B, C, H, W) uint8 and arguments (B, 1, 1) to (B, C or 1, 256) new values.


def _look_up(images: Tensor, names: np.ndarray, arguments: np.ndarray, _fill: Tensor) -> Tensor:
    count, channels = images.shape[:2]
    tables = torch.empty(count, channels, 256, dtype=torch.uint8, device=images.device)
    given = torch.from_numpy(arguments.astype(np.float32)).to(images.device)[:, None, None]
    for name, rows in _each(names, TABLES, images.device):
        tables[rows] = TABLES[name](images.index_select(0, rows), given[rows]).to(torch.uint8)
    return tables.flatten().index_select(0, _places(images).flatten()).view(images.shape)


def _places(images: Tensor) -> Tensor:
    """(B, C, H, W) where the value of each pixel stands in all tables (B, C, 256), one after the other."""
    count, channels = images.shape[:2]
    return images + 256 * torch.arange(count * channels, dtype=torch.int32, device=images.device).view(count, channels, 1, 1)


def _values(images: Tensor) -> Tensor:
    return torch.arange(256, device=images.device)


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest bits."""
    dropped = 2 ** (8 - bits.long())
    return _values(images) // dropped * dropped


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert what is not below the threshold."""
    values = _values(images)
    return torch.where(values < threshold, values, 255 - values)


def _solarize_add(images: Tensor, added: Tensor) -> Tensor:
    """Brighten the darker half of the values."""
    values = _values(images)
    return torch.where(values < 128, (values + added.long()).clamp(max=255), values)


def _invert(images: Tensor, _argument: Tensor) -> Tensor:
    return 255 - _values(images)


def _autocontrast(images: Tensor, _argument: Tensor) -> Tensor:
    """Stretch each channel so that its darkest value becomes 0 and its lightest 255."""
    darkest, lightest = (end.double()[:, :, None] for end in images.flatten(2).aminmax(dim=2))
    scale = torch.full_like(lightest, 255) / (lightest - darkest)  # a number over a tensor would be rounded twice
    stretched = (_values(images) * scale - darkest * scale).clamp(0, 255)
    return torch.where(lightest > darkest, stretched, _values(images))


def _equalize(images: Tensor, _argument: Tensor) -> Tensor:
    """Spread each channel's values evenly, by its histogram."""
    count, channels, height, width = images.shape
    histogram = torch.bincount(_places(images).flatten(), minlength=count * channels * 256).view(count, channels, 256)
    lightest = histogram.gather(2, images.flatten(2).amax(2, keepdim=True).long())
    step = (height * width - lightest) // 255
    below = histogram.cumsum(2) - histogram
    spread = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, spread, _values(images))


TABLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "invert": _invert,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}

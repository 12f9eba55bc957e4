"""From pictures to tokens: patches, shifted patch tokenization (SPT), whitening, a convolutional stem, positions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))  # (down, right) of what a copy shows at each position
CARDINAL = ((-1, 0), (1, 0), (0, -1), (0, 1))
DIRECTIONS = {"diagonal4": DIAGONAL, "cardinal4": CARDINAL, "cardinal8": CARDINAL + DIAGONAL}


def shifted(images: Tensor, pixels: int, directions: str = "diagonal4") -> Tensor:
    """The picture and copies moved by `pixels`, on the channel axis: (B, C, H, W) -> (B, (1 + copies) * C, H, W).

    diagonal4: itself, then what lies left-up, right-up, left-down and right-down of each position (Lee et al. 2021,
    section 3.2.1); cardinal4: up, down, left, right; cardinal8: those and then the diagonal ones (supplementary, figure 1).
    Zeros come in from outside, which after normalisation are the data set's mean.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (pixels,) * 4)
    corners = [(pixels * (1 + down), pixels * (1 + right)) for down, right in DIRECTIONS[directions]]
    return torch.cat([images, *(padded[:, :, top : top + height, left : left + width] for top, left in corners)], dim=1)


def patches(images: Tensor, size: int) -> Tensor:
    """Cut (B, C, H, W) into (B, N, size * size * C): tokens row by row, inside a token (row, column, channel)."""
    batch, channels, height, width = images.shape
    cut = images.reshape(batch, channels, height // size, size, width // size, size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, size * size * channels)


class PatchEmbedding(nn.Module):
    """Patches and a linear map: (B, C, H, W) -> (B, N, width)."""

    def __init__(self, patch_size: int, channels: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Linear(patch_size * patch_size * channels, width)

    def inputs(self, images: Tensor) -> Tensor:
        """What the linear map sees, (B, N, size * size * C)."""
        return patches(images, self.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(self.inputs(images))


class ShiftedPatchEmbedding(nn.Module):
    """SPT: shift by a part of the patch, cut, LayerNorm, linear (Lee et al. 2021, eq. 6): (B, C, H, W) -> (B, N, width).

    The copies are never made. All of them read the same square of patch_size + 2 * shift pixels around a patch, so the
    linear map of the copies is one linear map of that square, and LayerNorm's mean and variance are weighted ones.
    """

    def __init__(
        self, patch_size: int, channels: int, width: int, *, directions: str = "diagonal4", ratio: float = 0.5
    ) -> None:
        super().__init__()
        self.patch_size, self.channels, self.directions = patch_size, channels, directions
        self.shift = int(patch_size * ratio)
        inputs = (1 + len(DIRECTIONS[directions])) * patch_size * patch_size * channels
        self.norm = nn.LayerNorm(inputs)
        self.projection = nn.Linear(inputs, width)

    def forward(self, images: Tensor) -> Tensor:
        return self.grid(images).flatten(1, 2)

    def grid(self, images: Tensor) -> Tensor:
        """The tokens in their places, (B, h, w, width)."""
        padded = F.pad(images, (self.shift,) * 4)
        mean, variance = self._moments(padded)
        side = self.patch_size + 2 * self.shift
        windows = padded.unfold(2, side, self.patch_size).unfold(3, side, self.patch_size)
        squares = windows.permute(0, 2, 3, 1, 4, 5).flatten(3) - mean
        weight = self._on_square(self.projection.weight * self.norm.weight)
        bias = self.projection.bias + self.projection.weight @ self.norm.bias
        return F.linear(squares, weight) * torch.rsqrt(variance + self.norm.eps) + bias

    def inputs(self, images: Tensor) -> Tensor:
        """What the linear map sees by the plain formula, (B, N, (1 + copies) * size * size * C)."""
        return self.norm(patches(shifted(images, self.shift, self.directions), self.patch_size))

    def _moments(self, padded: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of all that the copies read, each (B, h, w, 1); summed in float64, so that little is lost."""
        exact = padded.to(torch.float64)
        both = torch.stack([exact.mean(1), exact.square().mean(1)], dim=1)
        height, width = (side - 2 * self.shift for side in padded.shape[2:])
        seen = [both[:, :, top : top + height, left : left + width] for top, left in self._places()]
        mean, square = torch.stack([F.avg_pool2d(each, self.patch_size) for each in seen]).mean(0)[..., None].unbind(1)
        precision = self.projection.weight.dtype
        return mean.to(precision), (square - mean.square()).to(precision)

    def _places(self) -> list[tuple[int, int]]:
        """Top and left of the picture and its copies in the padded picture."""
        return [(self.shift * (1 + down), self.shift * (1 + right)) for down, right in ((0, 0), *DIRECTIONS[self.directions])]

    def _on_square(self, weight: Tensor) -> Tensor:
        """Weights (out, inputs) of the copies' pixels, added up where copies read the same one: (out, C * side * side)."""
        size, rest = self.patch_size, 2 * self.shift
        copies = weight.unflatten(1, (size, size, -1, self.channels)).permute(3, 0, 4, 1, 2)
        placed = (
            F.pad(copy, (left, rest - left, top, rest - top)) for copy, (top, left) in zip(copies, self._places(), strict=True)
        )
        return torch.stack([*placed]).sum(0).flatten(1)


class ShiftedPatchPooling(ShiftedPatchEmbedding):
    """SPT as pooling of 2 x 2 (Lee et al. 2021, eq. 8): maps (B, C, H, W) -> (B, h, w, width); odd sides are padded."""

    def __init__(self, channels: int, width: int, *, directions: str = "diagonal4", ratio: float = 0.5) -> None:
        super().__init__(2, channels, width, directions=directions, ratio=ratio)

    def forward(self, maps: Tensor) -> Tensor:
        return self.grid(F.pad(maps, (0, maps.shape[3] % 2, 0, maps.shape[2] % 2)))


@torch.no_grad()
def whiten(embedding: PatchEmbedding | ShiftedPatchEmbedding, images: Tensor, *, epsilon: float = 5e-4) -> None:
    """Start a patch embedding as a whitening of pictures (B, C, H, W): its first filters become the eigenvectors of the
    patches' covariance, the strongest first, each over the square root of its eigenvalue (Wu 2025; Jordan 2024).

    Eigenvectors come with either sign: the largest entry is made positive, so that all machines agree.
    """
    inputs = embedding.inputs(images).flatten(0, 1).double()
    strength, vectors = torch.linalg.eigh(torch.cov(inputs.T))
    weight = embedding.projection.weight
    count = min(weight.shape)
    filters = (vectors / (strength.clamp(min=0) + epsilon).sqrt()).T.flip(0)[:count]
    signs = filters.gather(1, filters.abs().argmax(1, keepdim=True)).sign()
    weight[:count] = (filters * signs).to(weight.dtype)


class ConvStem(nn.Sequential):
    """3x3 convolutions with BatchNorm and ReLU in front of a ViT (Chai, section 2.4); He initialisation.

    (B, C, H, W) -> (B, channels[-1], H / stride, W / stride)
    """

    def __init__(self, channels_in: int, channels: Sequence[int], stride: int) -> None:
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(zip([channels_in, *channels], channels, strict=False)):
            convolution = nn.Conv2d(before, after, 3, stride if index == 0 else 1, 1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers)


def behind_stem(
    image_size: int | Sequence[int], channels: int, stem: Sequence[int], stride: int
) -> tuple[tuple[int, int], int]:
    """Height and width, and channels, of what a stem makes of a picture; of the picture itself where there is none."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not stem:
        return (height, width), channels
    return (math.ceil(height / stride), math.ceil(width / stride)), stem[-1]


def sine_cosine(rows: int, columns: int, width: int) -> Tensor:
    """Fixed positions (rows * columns, width): a quarter each sine and cosine of the row, and of the column.

    Wavelengths from 2 pi to 20,000 pi (Chen et al. 2021, MoCo v3, section 4.3).
    """
    rates = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    across = torch.arange(columns)[None, :, None] * rates.expand(rows, 1, -1)
    down = torch.arange(rows)[:, None, None] * rates.expand(1, columns, -1)
    parts = [function(angle) for angle in (down, across) for function in (torch.sin, torch.cos)]
    return torch.cat(parts, dim=2).flatten(0, 1)

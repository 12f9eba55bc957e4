"""From pictures to tokens: the plain patch embedding and shifted patch tokenization (SPT)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def shifted(images: Tensor, pixels: int) -> Tensor:
    """The picture and four copies moved diagonally by `pixels`, on the channel axis: (B, C, H, W) -> (B, 5C, H, W).

    Order: itself, then what lies left-up, right-up, left-down and right-down of each position; zeros come in from
    outside, which after normalisation are the data set's mean. Lee et al. 2021, section 3.1.
    """
    if pixels == 0:
        return images.repeat(1, 5, 1, 1)
    height, width = images.shape[2:]
    padded = F.pad(images, (pixels,) * 4)
    corners = [(0, 0), (0, 2 * pixels), (2 * pixels, 0), (2 * pixels, 2 * pixels)]
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

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(patches(images, self.patch_size))


class ShiftedPatchEmbedding(nn.Module):
    """SPT as patch embedding: shift by half a patch, cut, LayerNorm, linear (Lee et al. 2021, eq. 4 and 5).

    (B, C, H, W) -> (B, N, width).
    """

    def __init__(self, patch_size: int, channels: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.norm = nn.LayerNorm(5 * patch_size * patch_size * channels)
        self.projection = nn.Linear(5 * patch_size * patch_size * channels, width)

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(self.norm(patches(shifted(images, self.patch_size // 2), self.patch_size)))

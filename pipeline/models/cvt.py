"""Convolutional vision Transformer (Wu et al. 2021), which timm does not have."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.base import Classifier, DropPath, rising
from pipeline.models.vit import truncated


class ConvAttention(nn.Module):
    """Self-attention over a map and perhaps a class token; query, key and value are depthwise convolutions, then linear.

    Key and value have half the rows and columns (section 3.3). The scale is width ** -0.5, as released.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, width**-0.5
        self.convolutions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False), nn.BatchNorm2d(width))
            for stride in (1, 2, 2)
        )
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.projection = nn.Linear(width, width)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        extra = tokens.shape[1] - size[0] * size[1]
        maps = tokens[:, extra:].transpose(1, 2).unflatten(2, size)
        parts = []
        for convolution, linear in zip(self.convolutions, self.linears, strict=True):
            local = convolution(maps).flatten(2).transpose(1, 2)
            projected = linear(torch.cat([tokens[:, :extra].to(local.dtype), local], dim=1))
            parts.append(projected.unflatten(2, (self.heads, -1)).transpose(1, 2))
        query, key, value = parts
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        return self.projection(mixed.transpose(1, 2).flatten(2))


class QuickGelu(nn.Module):
    """x sigmoid(1.702 x)."""

    def forward(self, values: Tensor) -> Tensor:
        return values * torch.sigmoid(1.702 * values)


class Block(nn.Module):
    """x + attention(LN x), then x + mlp(LN x)."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = ConvAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), QuickGelu(), nn.Linear(4 * width, width))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        tokens = tokens + self.drop_path(self.attention(self.norm1(tokens), size))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class Stage(nn.Module):
    """Overlapping patches by a convolution, perhaps a class token, and blocks. No positions: the convolutions have them."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, blocks: list[Block], *, class_token: bool) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(channels, width, kernel, stride, kernel // 2), nn.LayerNorm(width)
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02)) if class_token else None
        self.blocks = nn.ModuleList(blocks)

    def forward(self, maps: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens before the first block, and how many rows and columns they are."""
        maps = self.embed(maps)
        tokens = self.norm(maps.flatten(2).transpose(1, 2))
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)
        return tokens, (maps.shape[2], maps.shape[3])


class ConvTransformer(Classifier):
    """Pictures (B, in_chans, H, W) of any size to logits (B, num_classes); by default CvT-13.

    stride: of the first convolution; 4 in the paper, less for small pictures. Stochastic depth is in the last stage only,
    as released. Initialisation: truncated normal (0.02) linear weights and class token, zero biases, torch's convolutions.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        stride: int = 4,
        widths: Sequence[int] = (64, 192, 384),
        depths: Sequence[int] = (1, 2, 10),
        heads: Sequence[int] = (1, 3, 6),
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_features = self.head_hidden_size = widths[-1]
        self.num_classes = num_classes
        self.stages: Any = nn.ModuleList()
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            last = index == len(widths) - 1
            rates = rising(drop_path_rate if last else 0.0, depth)
            shape = (widths[index - 1], width, 3, 2) if index else (in_chans, width, 7, stride)
            self.stages.append(Stage(*shape, [Block(width, heads[index], rate) for rate in rates], class_token=last))
        self.norm = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)
        self.default_layers = [0, sum(depths) // 2, max(0, sum(depths) - 2)]  # Li et al. 2022: 0, 6, 11 of 13
        self.apply(truncated)

    def forward_intermediates(self, images: Tensor, *, indices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """The normalised tokens (B, 1 + N, C) of the last stage, and the blocks `indices` as maps (B, C, h, w)."""
        tapped, maps = [], images
        for stage in self.stages:
            tokens, size = stage(maps)
            for block in stage.blocks:
                tokens = block(tokens, size)
                maps = tokens[:, -size[0] * size[1] :].transpose(1, 2).unflatten(2, size)
                tapped.append(maps)
        return self.norm(tokens), [tapped[index] for index in indices]

    def pooled(self, features: Tensor) -> Tensor:
        return features[:, 0]

"""Pyramid Vision Transformer (Wang et al. 2021), which timm has only in its second version."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.base import Classifier, DropPath, rising
from pipeline.models.vit import truncated

LayerNorm = partial(nn.LayerNorm, eps=1e-6)
Size = tuple[int, int]  # rows and columns


class ReducedAttention(nn.Module):
    """Self-attention over (B, N, width) whose keys and values are of a map smaller by `reduction` (section 3.3)."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.projection = nn.Linear(width, width)
        self.reduce = nn.Conv2d(width, width, reduction, reduction) if reduction > 1 else None
        self.norm = LayerNorm(width) if reduction > 1 else None

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        query = self.query(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
        if self.reduce is not None and self.norm is not None:
            maps = tokens.transpose(1, 2).unflatten(2, size)
            tokens = self.norm(self.reduce(maps).flatten(2).transpose(1, 2))
        key, value = self.key_value(tokens).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.projection(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(LN x), then x + mlp(LN x)."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.attention = ReducedAttention(width, heads, reduction)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        tokens = tokens + self.drop_path(self.attention(self.norm1(tokens), size))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class Stage(nn.Module):
    """Patches of a map, with positions and perhaps a class token, and its blocks."""

    def __init__(self, channels: int, width: int, patch: int, size: Size, blocks: list[Block], *, class_token: bool) -> None:
        super().__init__()
        self.patch, self.size = patch, size
        self.embed, self.norm = nn.Conv2d(channels, width, patch, patch), nn.LayerNorm(width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if class_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, size[0] * size[1] + class_token, width))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, maps: Tensor) -> Tensor:
        """Tokens before the first block."""
        maps = F.pad(maps, (0, -maps.shape[3] % self.patch, 0, -maps.shape[2] % self.patch))
        tokens = self.norm(self.embed(maps).flatten(2).transpose(1, 2))
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return tokens + self.pos_embed


class PyramidTransformer(Classifier):
    """Pictures (B, in_chans, *img_size) to logits (B, num_classes); by default PVT-Tiny. Odd sides are padded.

    stride: of the first patches; 4 in the paper, less for small pictures. Taps are blocks, over all stages.
    Initialisation: truncated normal (0.02) linear weights, positions and class token, zero biases.
    """

    def __init__(
        self,
        *,
        img_size: int | Sequence[int],
        in_chans: int = 3,
        num_classes: int = 1000,
        stride: int = 4,
        widths: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        reductions: Sequence[int] = (8, 4, 2, 1),
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        rows, columns = (img_size, img_size) if isinstance(img_size, int) else img_size
        rates = rising(drop_path_rate, sum(depths))
        self.num_features = self.head_hidden_size = widths[-1]
        self.num_classes = num_classes
        self.stages: Any = nn.ModuleList()
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            patch, channels = (2, widths[index - 1]) if index else (stride, in_chans)
            rows, columns = math.ceil(rows / patch), math.ceil(columns / patch)
            shape = width, heads[index], mlp_ratios[index], reductions[index]
            blocks = [Block(*shape, rates.pop(0)) for _ in range(depth)]
            last = index == len(widths) - 1
            self.stages.append(Stage(channels, width, patch, (rows, columns), blocks, class_token=last))
        self.norm = LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)
        self.default_layers = [0, sum(depths) // 2 - 1, sum(depths) - 1]  # Li et al. 2022: 0, 3, 7
        self.apply(truncated)
        for name, parameter in self.named_parameters():
            if name.endswith(("pos_embed", "cls_token")):
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward_intermediates(self, images: Tensor, *, indices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """The normalised tokens (B, 1 + N, C) of the last stage, and the blocks `indices` as maps (B, C, h, w)."""
        tapped, maps = [], images
        for stage in self.stages:
            tokens, count = stage(maps), stage.size[0] * stage.size[1]
            for block in stage.blocks:
                tokens = block(tokens, stage.size)
                maps = tokens[:, -count:].transpose(1, 2).unflatten(2, stage.size)
                tapped.append(maps)
        return self.norm(tokens), [tapped[index] for index in indices]

    def pooled(self, features: Tensor) -> Tensor:
        return features[:, 0]

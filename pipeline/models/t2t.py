"""Tokens-to-Token ViT (Yuan et al. 2021) in the form of Lee et al.'s code, with full attention in the token transformers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.attention import PLAIN, Locality, Tempered
from pipeline.models.base import rising
from pipeline.models.tokens import DIRECTIONS, ConvStem, behind_stem, shifted
from pipeline.models.vit import Block, Encoder, truncated


class TokenTransformer(Tempered):
    """One block with one head that changes the width: (B, N, width_in) -> (B, N, width). The value skips the attention."""

    def __init__(self, width_in: int, width: int, *, locality: Locality = PLAIN) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width_in)
        self.qkv = nn.Linear(width_in, 3 * width, bias=False)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.set_scale(1, width_in, locality)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.projected(self.qkv, self.norm1(tokens))[:, None].chunk(3, dim=-1)
        mixed = self.projection(self.attend(query, key, value)) + value
        return mixed[:, 0] + self.mlp(self.norm2(mixed[:, 0]))


class SoftSplits(nn.Module):
    """Overlapping patches, a token transformer, and again; (B, C, H, W) -> (B, N, width).

    splits: kernel and stride of each, padded so that sides shrink by the stride.
    """

    def __init__(
        self, channels: int, splits: Sequence[Sequence[int]], token_width: int, width: int, locality: Locality
    ) -> None:
        super().__init__()
        self.splits = splits
        widths = [channels, *[token_width] * (len(splits) - 1)]
        inputs = [before * kernel * kernel for before, (kernel, _) in zip(widths, splits, strict=True)]
        self.transformers = nn.ModuleList(TokenTransformer(each, token_width, locality=locality) for each in inputs[:-1])
        self.project = nn.Linear(inputs[-1], width)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        maps = images
        for (kernel, stride), transformer in zip(self.splits, [*self.transformers, self.project], strict=True):
            tokens = transformer(F.unfold(maps, kernel, padding=kernel // 2, stride=stride).transpose(1, 2))
            height, width = math.ceil(height / stride), math.ceil(width / stride)
            maps = tokens.transpose(1, 2).unflatten(2, (height, width))
        return tokens


class ShiftedSoftSplits(SoftSplits):
    """SPT in T2T: the picture and its copies, shifted as for patches of 2, before the first split; no LayerNorm."""

    def __init__(
        self,
        channels: int,
        splits: Sequence[Sequence[int]],
        token_width: int,
        width: int,
        locality: Locality,
        *,
        directions: str,
        ratio: float,
    ) -> None:
        super().__init__((1 + len(DIRECTIONS[directions])) * channels, splits, token_width, width, locality)
        self.directions, self.pixels = directions, int(2 * ratio)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(shifted(images, self.pixels, self.directions))


class TwiceNormedBlock(Block):
    """Lee et al.'s block for T2T: the normalised tokens also go around the attention, x + (attention(LN x) + LN x)."""

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        tokens = tokens + self.drop_path(self.attention(normed) + normed)
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class T2T(Encoder):
    """Pictures (B, in_chans, *img_size) to logits (B, num_classes).

    Stochastic depth rises linearly over the blocks. Initialisation as in Yuan et al.'s code: truncated normal (0.02)
    weights and class token, zero biases. Without the LayerNorm(576) that their code makes and never uses.
    """

    def __init__(
        self,
        *,
        img_size: int | Sequence[int],
        in_chans: int = 3,
        num_classes: int = 1000,
        splits: Sequence[Sequence[int]] = ((3, 2), (3, 2), (3, 2)),
        token_width: int = 64,
        embed_dim: int = 256,
        depth: int = 12,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        spt: bool = False,
        spt_directions: str = "diagonal4",
        spt_ratio: float = 0.5,
        lsa: bool | str = False,
        temperature: float = 1.0,
        stem: Sequence[int] = (),
        stem_stride: int = 1,
        drop_path_rate: float = 0.0,
    ) -> None:
        size, channels = behind_stem(img_size, in_chans, stem, stem_stride)
        for _, stride in splits:
            size = math.ceil(size[0] / stride), math.ceil(size[1] / stride)
        locality = Locality.of(lsa, temperature)
        shape = channels, splits, token_width, embed_dim, locality
        tokens = ShiftedSoftSplits(*shape, directions=spt_directions, ratio=spt_ratio) if spt else SoftSplits(*shape)
        rates = rising(drop_path_rate, depth)
        super().__init__(
            tokens,
            [TwiceNormedBlock(embed_dim, num_heads, mlp_ratio, locality=locality, drop_path=rate) for rate in rates],
            grid=size,
            width=embed_dim,
            num_classes=num_classes,
            position=_sinusoid(1 + size[0] * size[1], embed_dim)[None],
            stem=ConvStem(in_chans, stem, stem_stride) if stem else None,
        )
        self.apply(truncated)
        assert self.cls_token is not None
        nn.init.trunc_normal_(self.cls_token, std=0.02)


def _sinusoid(count: int, width: int) -> Tensor:
    """The fixed positions of Vaswani et al. 2017, section 3.5, over the sequence with its class token: (count, width)."""
    rates = 10000.0 ** -(2 * (torch.arange(width) // 2) / width)
    angles = torch.arange(count)[:, None] * rates
    return torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos())

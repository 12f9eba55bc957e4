"""The compact convolutional transformer (Hassani et al. 2021)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.models.attention import Locality
from pipeline.models.base import rising
from pipeline.models.vit import Block, Encoder, truncated


class ConvTokens(nn.Module):
    """Convolutions, each with ReLU and 3x3 pooling of stride 2: (B, C, H, W) -> (B, N, width). He initialisation."""

    def __init__(self, channels: int, width: int, *, kernel: int, convolutions: int) -> None:
        super().__init__()
        widths = [channels, *[64] * (convolutions - 1), width]
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, kernel, 1, kernel // 2, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
            nn.init.kaiming_normal_(layers[-3].weight)  # type: ignore[arg-type]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(2).transpose(1, 2)


class CompactTransformer(Encoder):
    """Pictures (B, in_chans, *img_size) to logits (B, num_classes); by default CCT-7/3x1, 3.76 M parameters for 10 classes.

    No class token: the head sees a learned weighted mean of the tokens. Blocks are those of our ViT (the released code
    normalises the residual stream itself before the MLP). Stochastic depth rises linearly. Initialisation as released:
    truncated normal (0.2) positions and (0.02) linear weights, He normal convolutions.
    """

    def __init__(
        self,
        *,
        img_size: int | Sequence[int],
        in_chans: int = 3,
        num_classes: int = 1000,
        kernel: int = 3,
        convolutions: int = 1,
        embed_dim: int = 256,
        depth: int = 7,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        lsa: bool | str = False,
        temperature: float = 1.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        grid = math.ceil(height / 2**convolutions), math.ceil(width / 2**convolutions)
        rates = rising(drop_path_rate, depth)
        locality = Locality.of(lsa, temperature)
        super().__init__(
            ConvTokens(in_chans, embed_dim, kernel=kernel, convolutions=convolutions),
            [Block(embed_dim, num_heads, mlp_ratio, locality=locality, drop_path=rate) for rate in rates],
            grid=grid,
            width=embed_dim,
            num_classes=num_classes,
            pool="sequence",
            position=nn.Parameter(nn.init.trunc_normal_(torch.empty(1, grid[0] * grid[1], embed_dim), std=0.2)),
        )
        self.apply(truncated)

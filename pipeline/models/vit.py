"""The small-data ViT of Lee et al. 2021 (depth 9, width 192, 12 heads, MLP ratio 2 in their experiments)."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from pipeline.models.attention import Attention
from pipeline.models.tokens import PatchEmbedding, ShiftedPatchEmbedding


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, drop a picture's residual branch with probability `rate`.

    All workers draw for the whole global batch and each takes its rows, so the same pictures lose the same branches
    for any number of workers (the engine seeds every step alike on all of them).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
        chances = torch.rand(world, len(branch), device=branch.device)[rank]
        kept = (chances >= self.rate).to(branch.dtype) / (1 - self.rate)
        return branch * kept[:, None, None]


class Block(nn.Module):
    """x + attention(LN x), then x + mlp(LN x), over tokens (B, N, width)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, *, lsa: bool, drop_path: float) -> None:
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, local=lsa)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self.attention(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class VisionTransformer(nn.Module):
    """Square pictures (B, in_chans, img_size, img_size) to logits (B, num_classes).

    spt: shifted patch tokenization instead of the plain patch embedding; lsa: locality self-attention in every block.
    Initialisation as in the authors' code: Xavier normal weights, zero biases, class token and positions N(0, 1).
    """

    def __init__(
        self,
        *,
        img_size: int,
        in_chans: int = 3,
        num_classes: int = 1000,
        patch_size: int = 8,
        embed_dim: int = 192,
        depth: int = 9,
        num_heads: int = 12,
        mlp_ratio: float = 2.0,
        spt: bool = False,
        lsa: bool = False,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_features, self.num_classes = embed_dim, num_classes
        self.grid = img_size // patch_size
        embedding = ShiftedPatchEmbedding if spt else PatchEmbedding
        self.patch_embed = embedding(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.randn(1, self.grid**2 + 1, embed_dim))
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, lsa=lsa, drop_path=drop_path_rate) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)
        self.apply(_initialise)

    @property
    def default_layers(self) -> list[int]:
        """First, middle and last block, as in Li et al. 2022 (0, 6, 11 of 12)."""
        return [0, len(self.blocks) // 2, len(self.blocks) - 1]

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """The normalised tokens (B, 1 + N, width) after the last block; the class token is the first."""
        return self.forward_intermediates(images, indices=[])[0]

    def forward_head(self, features: Tensor) -> Tensor:
        """Logits (B, num_classes) from the class token."""
        return self.head(features[:, 0])

    def forward_intermediates(self, images: Tensor, *, indices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """What forward_features gives, and the output of the blocks `indices` as maps (B, width, h, w) without class token."""
        tokens = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.pos_embed
        maps = {}
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in indices:
                maps[index] = tokens[:, 1:].transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return self.norm(tokens), [maps[index] for index in indices]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

"""Plain transformers over one set of tokens; the small-data ViT of Lee et al. 2021 and its relatives."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.attention import PLAIN, Attention, Locality
from pipeline.models.base import Classifier, Dropout, DropPath, first_middle_last, rising
from pipeline.models.tokens import ConvStem, PatchEmbedding, ShiftedPatchEmbedding, behind_stem, sine_cosine


class Block(nn.Module):
    """x + attention(LN x), then x + mlp(LN x), over tokens (B, N, width)."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        *,
        locality: Locality = PLAIN,
        latent: Collection[str] = (),
        rank: int = 64,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, locality=locality, latent=latent, rank=rank)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout, self.drop_path = Dropout(dropout), DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self.dropout(self.attention(self.norm1(tokens))))
        return tokens + self.drop_path(self.dropout(self.mlp(self.norm2(tokens))))


class Encoder(Classifier):
    """Tokens of a picture, class tokens and positions through blocks to logits: what ViT, T2T and CCT share.

    patch_embed: pictures to tokens (B, N, width), row by row over `grid`. pool: "token", all class tokens side by side;
    "avg", the mean of the tokens; "sequence", a learned weighted mean (CCT). A tap is a block's output without class tokens.
    distillation_token: one more token with a head of its own, beside one class token; the logits are the mean of both
    heads' (Touvron et al. 2021, section 4).
    """

    def __init__(
        self,
        patch_embed: nn.Module,
        blocks: Iterable[nn.Module],
        *,
        grid: tuple[int, int],
        width: int,
        num_classes: int,
        class_tokens: int = 1,
        distillation_token: bool = False,
        pool: str = "token",
        position: Tensor | None = None,
        stem: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.pool = grid, pool
        self.class_tokens = class_tokens if pool == "token" else 0
        self.num_features, self.num_classes = width, num_classes
        self.head_hidden_size = width * max(1, self.class_tokens)
        self.stem = stem or nn.Identity()
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.randn(1, self.class_tokens, width)) if self.class_tokens else None
        self.dist_token = nn.Parameter(torch.randn(1, 1, width)) if distillation_token else None
        self.pos_embed: Tensor | None
        if position is None or isinstance(position, nn.Parameter):
            self.pos_embed = position
        else:
            self.register_buffer("pos_embed", position, persistent=False)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.attention_pool = nn.Linear(width, 1) if pool == "sequence" else None
        self.head = nn.Linear(self.head_hidden_size, num_classes)
        self.head_dist: nn.Module | None = nn.Linear(width, num_classes) if distillation_token else None
        self.default_layers = first_middle_last(len(self.blocks))

    def forward_intermediates(self, images: Tensor, *, indices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """The normalised tokens (B, class and distillation tokens + N, width), and the blocks `indices` as (B, width, h, w)."""
        tokens = self._embedded(images)
        patches = self.grid[0] * self.grid[1]
        maps = {}
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in indices:
                maps[index] = tokens[:, -patches:].transpose(1, 2).unflatten(2, self.grid)
        return self.norm(tokens), [maps[index] for index in indices]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes), or what the head sees (B, head_hidden_size)."""
        if self.head_dist is None:
            return super().forward_head(features, pre_logits)
        own, taught = features[:, 0], features[:, 1]
        return (own + taught) / 2 if pre_logits else (self.head(own) + self.head_dist(taught)) / 2

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head, or two, for another number of classes; 0 for none."""
        super().reset_classifier(num_classes, global_pool)
        if self.head_dist is not None:
            device = next(self.parameters()).device
            self.head_dist = nn.Linear(self.num_features, num_classes, device=device) if num_classes else nn.Identity()

    def pooled(self, features: Tensor) -> Tensor:
        if self.pool == "token":
            return features[:, : self.class_tokens].flatten(1)
        if self.attention_pool is not None:  # Hassani et al. 2021, section 3.2
            return (self.attention_pool(features).softmax(1) * features).sum(1)
        return features.mean(1)

    def _embedded(self, images: Tensor) -> Tensor:
        tokens = self.patch_embed(self.stem(images))
        extra = [token for token in (self.cls_token, self.dist_token) if token is not None]
        if extra:  # tokens.shape[0], since len() would fix the batch when torch.export traces this
            tokens = torch.cat([*(token.expand(tokens.shape[0], -1, -1) for token in extra), tokens], dim=1)
        return tokens if self.pos_embed is None else tokens + self.pos_embed


class VisionTransformer(Encoder):
    """Pictures (B, in_chans, *img_size) to logits (B, num_classes).

    spt: shifted patch tokenization; lsa: locality self-attention, or its "temperature" or "mask" alone; mla: which of
    query, key and value are latent; stem: channels of convolutions in front (the hybrid).
    Initialisation as in Lee et al.'s code: Xavier normal weights, zero biases, class tokens and learned positions N(0, 1).
    """

    def __init__(
        self,
        *,
        img_size: int | Sequence[int],
        in_chans: int = 3,
        num_classes: int = 1000,
        patch_size: int = 8,
        embed_dim: int = 192,
        depth: int = 9,
        num_heads: int = 12,
        mlp_ratio: float = 2.0,
        spt: bool = False,
        spt_directions: str = "diagonal4",
        spt_ratio: float = 0.5,
        lsa: bool | str = False,
        temperature: float = 1.0,
        mla: Collection[str] = (),
        mla_rank: int = 64,
        class_tokens: int = 1,
        distillation_token: bool = False,
        global_pool: str = "token",
        position: str = "learned",
        stem: Sequence[int] = (),
        stem_stride: int = 1,
        whitening: bool = False,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_path_schedule: str = "constant",
    ) -> None:
        (height, width), channels = behind_stem(img_size, in_chans, stem, stem_stride)
        grid = height // patch_size, width // patch_size
        extra = class_tokens + distillation_token if global_pool == "token" else 0
        embedding: nn.Module = PatchEmbedding(patch_size, channels, embed_dim)
        if spt:
            embedding = ShiftedPatchEmbedding(patch_size, channels, embed_dim, directions=spt_directions, ratio=spt_ratio)
        rates = rising(drop_path_rate, depth) if drop_path_schedule == "linear" else [drop_path_rate] * depth
        parts: dict[str, Any] = {
            "locality": Locality.of(lsa, temperature),
            "latent": mla,
            "rank": mla_rank,
            "dropout": proj_drop_rate,
        }

        super().__init__(
            embedding,
            [Block(embed_dim, num_heads, mlp_ratio, **parts, drop_path=rate) for rate in rates],
            grid=grid,
            width=embed_dim,
            num_classes=num_classes,
            class_tokens=class_tokens,
            distillation_token=distillation_token,
            pool=global_pool,
            position=POSITIONS[position](extra, grid, embed_dim),
            stem=ConvStem(in_chans, stem, stem_stride) if stem else None,
        )
        self.whitening = whitening
        self.apply(xavier)


def _learned(extra: int, grid: tuple[int, int], width: int) -> Tensor:
    return nn.Parameter(torch.randn(1, extra + grid[0] * grid[1], width))


def _sine_cosine(extra: int, grid: tuple[int, int], width: int) -> Tensor:
    """Class tokens have no position."""
    return torch.cat([torch.zeros(extra, width), sine_cosine(*grid, width)])[None]


def xavier(module: nn.Module) -> None:
    """Xavier normal weights and zero biases of linear layers."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def truncated(module: nn.Module) -> None:
    """Truncated normal weights of deviation 0.02 and zero biases of linear layers."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


POSITIONS: dict[str, Callable[[int, tuple[int, int], int], Tensor | None]] = {
    "learned": _learned,
    "sincos": _sine_cosine,
    "none": lambda extra, grid, width: None,
}

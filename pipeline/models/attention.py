"""Self-attention: plain, local (LSA) and latent (MLA); with talking heads for CaiT, in windows for Swin."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Locality:
    """The parts of locality self-attention, each by itself (Lee et al. 2021, section 3.3 and tables 1 and 4).

    temperature: in units of sqrt(head width); fixed, or where it starts when it is learned.
    """

    learned: bool = False
    mask: bool = False  # no token attends to itself
    temperature: float = 1.0

    @classmethod
    def of(cls, lsa: bool | str, temperature: float = 1.0) -> "Locality":
        """From the settings: True for all of LSA, "temperature" or "mask" for a part of it."""
        return cls(learned=lsa in (True, "temperature"), mask=lsa in (True, "mask"), temperature=temperature)


PLAIN = Locality()


def self_mask(scores_like: Tensor, count: int) -> Tensor | None:
    """(count, count) to add to scores: minus infinity on the diagonal. None for a single token, which has only itself."""
    if count == 1:
        return None
    diagonal = torch.eye(count, dtype=torch.bool, device=scores_like.device)
    return torch.zeros_like(diagonal, dtype=scores_like.dtype).masked_fill(diagonal, -torch.inf)


class Tempered(nn.Module):
    """Attention with a `scale`, the inverse temperature, (heads,): learned, or constant and in no state dict."""

    scale: Tensor

    def set_scale(self, heads: int, head_width: int, locality: Locality) -> None:
        """To be called once; the scale starts at head_width ** -0.5 / temperature."""
        self.locality = locality
        self.first_scale = head_width**-0.5 / locality.temperature
        scale = torch.full((heads,), self.first_scale)
        if locality.learned:
            self.register_parameter("scale", nn.Parameter(scale))
        else:
            self.register_buffer("scale", scale, persistent=False)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax(scale * query key^T) value over (B, heads, N, head width), without self-attention where it is masked.

        One fused kernel. A learned temperature is already in the query, from `projected`; a constant one is the kernel's own.
        """
        mask = self_mask(query, query.shape[2]) if self.locality.mask else None
        scale = 1.0 if self.locality.learned else self.first_scale
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)

    def projected(self, qkv: nn.Module, tokens: Tensor) -> Tensor:
        """Query, key and value side by side, (B, N, 3 * inner width), a learned temperature folded into the query.

        Into its weights where they are one matrix, which is far less to multiply than the queries of a batch.
        """
        if not self.locality.learned:
            return qkv(tokens)
        if not isinstance(qkv, nn.Linear):
            out = qkv(tokens)
            return out * self._factor(out.shape[-1]).to(out.dtype)
        factor = self._factor(qkv.out_features)
        return F.linear(tokens, qkv.weight * factor[:, None], None if qkv.bias is None else qkv.bias * factor)

    def _factor(self, count: int) -> Tensor:
        """(count,): the scale of its head for every channel of the query, one for those of key and value."""
        query = self.scale.repeat_interleave(count // 3 // len(self.scale))
        return torch.cat([query, query.new_ones(count - len(query))])


class LatentProjections(nn.Module):
    """Query, key and value (B, N, 3 * width) of tokens (B, N, width); those in `latent` are products of low rank.

    Multi-head latent attention as in Wu 2025: each of them goes through `rank` numbers a token of its own.
    """

    def __init__(self, width: int, latent: Collection[str], rank: int) -> None:
        super().__init__()
        for part in ("query", "key", "value"):
            low = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False))
            self.add_module(part, low if part in latent else nn.Linear(width, width, bias=False))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([part(tokens) for part in self.children()], dim=-1)


class Attention(Tempered):
    """Multi-head self-attention over (B, N, width), perhaps local; `latent` names the projections of low rank (MLA)."""

    def __init__(
        self, width: int, heads: int, *, locality: Locality = PLAIN, latent: Collection[str] = (), rank: int = 64
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv: nn.Module = LatentProjections(width, latent, rank) if latent else nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width)
        self.set_scale(heads, width // heads, locality)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = _heads(self.projected(self.qkv, tokens), 3, self.heads)
        mixed = self.attend(query, key, value)
        return self.projection(mixed.transpose(1, 2).flatten(2))

    def weights(self, tokens: Tensor) -> Tensor:
        """(B, heads, N, N): how much each token (row) attends to each other, by the plain formula; rows sum to one."""
        query, key, _ = self.query_key_value(tokens)
        scores = query @ key.transpose(-2, -1) * self.scale[:, None, None]
        mask = self_mask(query, query.shape[2]) if self.locality.mask else None
        return (scores if mask is None else scores + mask).softmax(-1)

    def query_key_value(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each (B, heads, N, width / heads), not scaled."""
        query, key, value = _heads(self.qkv(tokens), 3, self.heads)
        return query, key, value


class TalkingHeads(Tempered):
    """CaiT's attention: heads are mixed before and after the softmax (Shazeer et al. 2020).

    LSA as in Lee et al.'s code: scores with oneself become zero before the first mixing; minus infinity could not be mixed.
    Heads are `head_width` wide, whatever `width` is. The mixing matrices start as N(0, 1), as there.
    """

    def __init__(self, width: int, heads: int, head_width: int, *, locality: Locality = PLAIN) -> None:
        super().__init__()
        self.heads = heads
        self.mix_before = nn.Parameter(torch.randn(heads, heads))  # (from, to)
        self.mix_after = nn.Parameter(torch.randn(heads, heads))
        self.query = nn.Linear(width, heads * head_width, bias=False)
        self.key_value = nn.Linear(width, 2 * heads * head_width, bias=False)
        self.projection = nn.Linear(heads * head_width, width)
        self.set_scale(heads, head_width, locality)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mix(tokens, tokens, mask=self.locality.mask)

    def mix(self, tokens: Tensor, context: Tensor, *, mask: bool) -> Tensor:
        """What tokens (B, N, width) draw from context (B, M, width)."""
        (query,) = _heads(self.query(tokens), 1, self.heads)
        key, value = _heads(self.key_value(context), 2, self.heads)
        scores = query @ key.transpose(-2, -1) * self.scale.to(query.dtype)[:, None, None]
        if mask:
            scores = scores.masked_fill(torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device), 0.0)
        weights = torch.einsum("bhij,hg->bgij", scores, self.mix_before).softmax(-1)
        weights = torch.einsum("bhij,hg->bgij", weights, self.mix_after)
        return self.projection((weights.to(value.dtype) @ value).transpose(1, 2).flatten(2))


class ClassAttention(TalkingHeads):
    """What the class token, the first of (B, 1 + N, width), draws from the others; no mask, since it is none of them."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mix(tokens[:, :1], tokens[:, 1:], mask=False)


class LocalWindowAttention(Tempered):
    """Swin's attention with LSA, taking over the weights of timm's WindowAttention `plain`.

    (windows, N, width) and the mask of shifted windows (windows a picture, N, N); the diagonal is masked last.
    """

    relative_position_index: Tensor

    def __init__(self, plain: Any, locality: Locality) -> None:
        super().__init__()
        self.heads = plain.num_heads
        self.qkv, self.proj = plain.qkv, plain.proj
        self.relative_position_bias_table = plain.relative_position_bias_table
        self.register_buffer("relative_position_index", plain.relative_position_index, persistent=False)
        self.set_scale(plain.num_heads, plain.proj.in_features // plain.num_heads, locality)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        query, key, value = _heads(self.qkv(tokens), 3, self.heads)
        scores = (query * self.scale.to(query.dtype)[:, None, None]) @ key.transpose(-2, -1) + self._bias()
        if mask is not None:
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        alone = self_mask(scores, scores.shape[-1]) if self.locality.mask else None
        weights = (scores if alone is None else scores + alone).softmax(-1)
        return self.proj((weights.to(value.dtype) @ value).transpose(1, 2).flatten(2))

    def _bias(self) -> Tensor:
        """(heads, N, N), by relative position."""
        count = len(self.relative_position_index)
        return (
            self.relative_position_bias_table[self.relative_position_index.flatten()]
            .unflatten(0, (count, count))
            .permute(2, 0, 1)
        )


def _heads(projected: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(B, N, parts * heads * head width) by parts, each (B, heads, N, head width)."""
    return projected.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

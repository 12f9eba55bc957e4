"""Self-attention, plain and local."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head self-attention over (B, N, width); with `local`, locality self-attention (LSA).

    LSA (Lee et al. 2021, section 3.2): the temperature is learned, one per head, and no token attends to itself.
    `scale` is the inverse temperature, (heads,), and starts at head_width ** -0.5.
    """

    def __init__(self, width: int, heads: int, *, local: bool = False) -> None:
        super().__init__()
        self.heads, self.local = heads, local
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width)
        scale = torch.full((heads,), (width // heads) ** -0.5)
        if local:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self._heads(tokens)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self._mask(query), scale=1.0)
        return self.projection(mixed.transpose(1, 2).flatten(2))

    def weights(self, tokens: Tensor) -> Tensor:
        """(B, heads, N, N): how much each token (row) attends to each other; rows sum to one."""
        query, key, _ = self._heads(tokens)
        scores = query @ key.transpose(-2, -1)
        mask = self._mask(query)
        return (scores if mask is None else scores + mask).softmax(-1)

    def _heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values, each (B, heads, N, width / heads)."""
        batch, count, _ = tokens.shape
        query, key, value = self.qkv(tokens).reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return query * self.scale.to(query.dtype)[:, None, None], key, value

    def _mask(self, query: Tensor) -> Tensor | None:
        """(N, N) to add to the scores: minus infinity on the diagonal, zero elsewhere."""
        if not self.local:
            return None
        count = query.shape[2]
        return torch.zeros(count, count, dtype=query.dtype, device=query.device).fill_diagonal_(-torch.inf)

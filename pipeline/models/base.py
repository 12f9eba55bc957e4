"""What our networks share: the interface, which is timm's, and what is dropped in training."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn


def kept(rate: float, *shape: int, device: torch.device) -> Tensor:
    """Zeros with probability `rate`, and 1 / (1 - rate), for this worker's pictures (B, ...).

    All workers draw for the whole global batch and each takes its rows, so the same pictures lose the same things
    for any number of workers (the engine seeds every step alike on all of them).
    """
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    return (torch.rand(world, *shape, device=device)[rank] >= rate) / (1 - rate)


class Dropout(nn.Module):
    """In training, drop each number with probability `rate` (Srivastava et al. 2014)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return tokens
        return tokens * kept(self.rate, *tokens.shape, device=tokens.device).to(tokens.dtype)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, drop a picture's residual branch with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        share = kept(self.rate, len(branch), device=branch.device).to(branch.dtype)
        return branch * share.reshape(-1, *[1] * (branch.ndim - 1))


class Classifier(nn.Module):
    """A network of our own. A subclass gives forward_intermediates, `pooled`, default_layers, num_features and `head`."""

    head: nn.Module
    num_features: int  # channels of forward_features
    head_hidden_size: int  # what the head sees
    num_classes: int
    default_layers: list[int]  # those that guidance uses

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """The tokens or maps after the last layer, as forward_head takes them."""
        return self.forward_intermediates(images, indices=[])[0]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes), or what the head sees (B, head_hidden_size)."""
        pooled = self.pooled(features)
        return pooled if pre_logits else self.head(pooled)

    def forward_intermediates(self, images: Tensor, *, indices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """What forward_features gives, and the outputs of the layers `indices` as maps (B, C, h, w)."""
        raise NotImplementedError

    def pooled(self, features: Tensor) -> Tensor:
        """One vector per picture."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Names of matrices that should not decay: class tokens and positions."""
        return {name for name, _ in self.named_parameters() if name.endswith(("cls_token", "dist_token", "pos_embed"))}

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The last linear layer, or both where there is a distillation token."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for another number of classes; 0 for none."""
        if global_pool is not None:
            raise ValueError("global_pool is fixed when the network is built")
        device = next(self.parameters()).device
        self.num_classes = num_classes
        self.head = nn.Linear(self.head_hidden_size, num_classes, device=device) if num_classes else nn.Identity()


def first_middle_last(layers: int) -> list[int]:
    """As in Li et al. 2022: 0, 6, 11 of 12."""
    return [0, layers // 2, layers - 1]


def rising(rate: float, depth: int) -> list[float]:
    """Rates of stochastic depth from zero in the first of `depth` blocks to `rate` in the last."""
    return [rate * block / max(1, depth - 1) for block in range(depth)]

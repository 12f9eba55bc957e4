"""Where a network looks: its attention, read while it runs.

Nothing is hooked into the network: the products are seen on their way through torch, so the logits are those of any
other call. Weights are (B, heads, N, M): how much each token (row) takes from each other.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

MOST_WEIGHTS = 2**21  # N * M of a layer that is kept: 1,448 tokens
MOST_CLASS_TOKENS = 8

Grid = tuple[int, int]  # rows and columns of tokens


class Recorder(TorchFunctionMode):
    """Keeps the weights of every attention that runs inside it, in their order.

    That is every fused attention, and every softmax over the last of four axes. So ConViT has two in a layer, of content
    and of position; CaiT's are those before heads are mixed again; Swin's B is windows, not pictures.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is F.scaled_dot_product_attention:
            self._keep(args[0].shape[-2] * args[1].shape[-2], lambda: _weights(*args, **(kwargs or {})))
        elif function in (Tensor.softmax, torch.softmax, F.softmax) and result.ndim == 4:
            self._keep(result.shape[-2] * result.shape[-1], lambda: result)
        return result

    def _keep(self, count: int, weights: Callable[[], Tensor]) -> None:
        if count <= MOST_WEIGHTS:
            self.weights.append(weights().detach())


def _weights(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, scale: float | None = None, **_options: Any
) -> Tensor:
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    return (scores if attn_mask is None else scores + attn_mask).softmax(-1)


@torch.no_grad()
def layers(network: Any, images: Tensor) -> list[Tensor]:
    """The weights of all attentions over pictures (B, C, H, W); none for a CNN."""
    with Recorder() as recorder:
        network(images)
    return recorder.weights


def of_class_token(weights: Tensor, grid: Grid, *, pictures: int) -> Tensor | None:
    """What the class token takes from each patch, (B, heads, h, w); the mean over several class tokens.

    Without a class token, what all patches take on average. None where the weights are not of the whole grid: in windows.
    """
    extra = weights.shape[-1] - grid[0] * grid[1]
    if len(weights) != pictures or not 0 <= extra <= MOST_CLASS_TOKENS:
        return None
    rows = weights[:, :, :extra] if extra else weights
    return rows.mean(2)[..., extra:].unflatten(-1, grid)


def rollout(weights: Sequence[Tensor], grid: Grid, *, pictures: int) -> Tensor | None:
    """Attention through all layers and the paths around them (Abnar and Zuidema 2020, section 3): (B, h, w).

    None where tokens are pooled, reduced or kept in windows between the layers, or there is only one.
    """
    if len({each.shape for each in weights}) != 1 or weights[0].shape[-2] != weights[0].shape[-1]:
        return None
    joint = torch.eye(weights[0].shape[-1], device=weights[0].device)
    for each in weights:
        joint = (each.mean(1) + torch.eye(each.shape[-1], device=each.device)) / 2 @ joint
    found = of_class_token(joint[:, None], grid, pictures=pictures)
    return None if found is None else found[:, 0]


def divergence(weights: Tensor) -> float:
    """Kullback-Leibler divergence of the rows from the uniform distribution in nats, the mean (Lee et al. 2021, figure 4)."""
    entropy = -torch.special.xlogy(weights, weights).sum(-1)
    return math.log(weights.shape[-1]) - float(entropy.mean())


def distance(weights: Tensor, grids: Sequence[Grid], *, height: int) -> float:
    """How far patches look, in pixels: the mean over rows of the mean distance by weight (Dosovitskiy et al. 2021, D.7).

    Class tokens are left out. grids: of the network's layers; NaN where the weights belong to none of them.
    """
    rows, keys = weights.shape[-2:]
    found = [(extra, grid) for extra in range(MOST_CLASS_TOKENS + 1) for grid in grids if grid[0] * grid[1] + extra == keys]
    if rows != keys or not found:
        return float("nan")
    extra, grid = found[0]
    between = weights[..., extra:, extra:]
    shares = between / between.sum(-1, keepdim=True)
    return float((shares * _distances(grid).to(shares)).sum(-1).mean()) * height / grid[0]


def _distances(grid: Grid) -> Tensor:
    """(N, N) between the centres of tokens, in tokens."""
    places = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).float()
    return torch.cdist(places, places)

"""How alike two networks see the same pictures: linear centred kernel alignment (CKA, Kornblith et al. 2019).

A network leaves the products of its features on these pictures, from which any two networks can be compared later.
"""

import numpy as np
from torch import Tensor
from torch.nn import functional as F

LARGEST_MAP = 8  # rows and columns of features that are compared; larger maps are averaged down


def gram_of_maps(maps: Tensor) -> np.ndarray:
    """The `gram` of a layer's output (N, C, h, w)."""
    size = min(LARGEST_MAP, maps.shape[2]), min(LARGEST_MAP, maps.shape[3])
    return gram(F.adaptive_avg_pool2d(maps, size).float().cpu().numpy())


def gram(features: np.ndarray) -> np.ndarray:
    """(N, N) float32 products of the features of N pictures, (N, ...), to a mean square of one a picture."""
    flat = features.reshape(len(features), -1).astype(np.float64)
    products = flat @ flat.T
    return (products / max(np.trace(products) / len(flat), 1e-12)).astype(np.float32)


def cka(first: np.ndarray, second: np.ndarray) -> float:
    """Linear CKA of two `gram`, about 0 for features that have nothing in common, 1 for those alike up to rotation and scale.

    By the unbiased estimator (Song et al. 2012, eq. 5), since few pictures and many features make the biased one near 1.
    """
    scale = _dependence(first, first) * _dependence(second, second)
    return _dependence(first, second) / float(np.sqrt(scale)) if scale > 0 else float("nan")


def _dependence(first: np.ndarray, second: np.ndarray) -> float:
    count = len(first)
    k, l = (np.where(np.eye(count, dtype=bool), 0, each.astype(np.float64)) for each in (first, second))  # noqa: E741
    whole = k.sum() * l.sum() / ((count - 1) * (count - 2))
    rows = 2 / (count - 2) * k.sum(0) @ l.sum(0)
    return float(((k * l).sum() + whole - rows) / (count * (count - 3)))

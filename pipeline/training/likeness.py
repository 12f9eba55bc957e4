"""How like a teacher's a student's maps become under guidance, and what stays of that once it has ended.

Linear CKA (Kornblith et al. 2019) on the same validation pictures after every epoch. It is only looked at: no random
number is drawn, and no weight or statistic of the student is touched.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import similarity
from pipeline.data.augment.geometry import Frame
from pipeline.data.loading import Source, Take
from pipeline.training.guidance import Teacher

PICTURES = 128
FEWEST_PICTURES = 4  # that the unbiased estimator is defined for


class Likeness:
    """A teacher's view of some pictures, of which only the products are kept, so that the teacher can be let go.

    pictures: (N, H, W, C) uint8; pixels makes them what networks see.
    """

    def __init__(self, teacher: Teacher, layers: Sequence[int], pictures: Tensor, pixels: Callable[[Tensor], Tensor]) -> None:
        self.layers, self.pictures, self.pixels = list(layers), pictures, pixels
        self.wanted = [similarity.gram_of_maps(maps) for maps in teacher(pixels(pictures))[1]]

    @torch.inference_mode()
    def of(self, student: Any) -> dict[str, float]:
        """guidance_cka_1, ...: of each guided layer with the teacher's, 1 for alike and about 0 for nothing in common."""
        _, maps = student.eval().forward_intermediates(self.pixels(self.pictures), indices=self.layers)
        pairs = zip(map(similarity.gram_of_maps, maps), self.wanted, strict=True)
        found = [similarity.cka(own, theirs) for own, theirs in pairs]
        return {f"guidance_cka_{number}": float(np.nan_to_num(value)) for number, value in enumerate(found, 1)}


def pictures(source: Source, *, side: int) -> Tensor:
    """The same few pictures of a split (N, side, side, C) uint8 for every network that is trained beside it."""
    rows = np.random.default_rng(0).permutation(len(source.labels))[:PICTURES]
    (images,) = source.fetch([Take(np.sort(rows))], Frame(side))
    return images.permute(0, 2, 3, 1)

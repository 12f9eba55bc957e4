"""The source that needs no file."""

import numpy as np

from pipeline.config import Data
from pipeline.data.sources.base import Picture, Source


def digits(_data: Data) -> Source:
    """The 1,797 handwritten digits (8 x 8, 17 grey levels) that scikit-learn carries (UCI, Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labelled = enumerate(zip(grey, bunch.target.tolist(), strict=True))
    pictures = (Picture(f"digit {index}", label, image.tobytes, (8, 8, 1)) for index, (image, label) in labelled)
    return Source(classes=[str(name) for name in bunch.target_names], splits={"train": pictures}, grey=True)

"""What happens to the pixels of a training picture.

Every random number of a picture is a function of (seed, epoch, view, operation), that of a mixture one of (seed, epoch,
step): neither the number of workers nor the order of work can change it. Numbers are drawn on the CPU, pixels are worked
on where they lie, uint8 in and out, each picture by its own numbers and in any batch the same. Inside of this package they are
(B, C, H, W), a plane for each channel, which is several times as fast as the (B, H, W, C) in which they are stored.

It is our own because no library does this: torchvision's v2 transforms and kornia's RandAugment draw once for a whole batch
(eight equal pictures come out equal), timm works picture by picture, in Pillow (`python -m benchmarks.input`).
"""

from torch import Tensor

from pipeline.config import Augmentation
from pipeline.data.augment import operations, policies
from pipeline.data.augment.chances import Chances
from pipeline.data.augment.colours import Colours
from pipeline.data.augment.erasing import DRAWS, erase
from pipeline.data.augment.geometry import crop, flip


def augment(images: Tensor, settings: Augmentation, chances: Chances, colours: Colours) -> Tensor:
    """Pictures (B, C, H, W) uint8 after the operations that the settings switch on.

    Random resized crops come before (`geometry.Frame`), when a picture is fetched, and mixing after (`mixing.mix`).
    """
    if settings.crop_padding:
        images = crop(images, chances("crop", 2), settings.crop_padding)
    if settings.horizontal_flip:
        images = flip(images, chances("flip", 1))
    for names, arguments in policies.layers(settings, chances, images.shape[3]):
        images = operations.apply(images, names, arguments, colours.mean)
    if settings.erase_probability:
        images = erase(images, chances("erase", DRAWS), settings.erase_probability, settings.erase_mode, colours)
    return images

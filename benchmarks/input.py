"""How fast batches come: ours against timm's transforms in a torch DataLoader, on the same cores, in turns.

python -m benchmarks.input [--sides 32 64] [--device cuda]. Both give normalised float batches on the device, and mixed
labels; what either does once (starting workers, keeping pixels on the device) is not counted. Two recipes:

lee  crop with padding, flip, AutoAugment(CIFAR-10), erasing, mixup or cutmix of every other batch (Lee et al. 2021)
li   random resized crop, flip, rand-m9-mstd0.5-inc1, erasing with noise (Li et al. 2022)
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pipeline.config import Augmentation, Training
from pipeline.data import batches
from pipeline.data.augment.colours import Colours
from pipeline.data.loading import Resident
from pipeline.training.engine import Pixels

MEAN, STD, CLASSES = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616), 10
RECIPES = {
    "lee": Augmentation(
        crop_padding=4,
        horizontal_flip=True,
        policy="autoaugment_cifar10",
        erase_probability=0.25,
        mixup_alpha=1.0,
        cutmix_alpha=1.0,
        mix_probability=0.5,
    ),
    "li": Augmentation(
        random_resized_crop=0.08, horizontal_flip=True, policy="randaugment", erase_probability=0.25, erase_mode="pixel"
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64], help="pixels")
    parser.add_argument("--pictures", type=int, default=5120, help="an epoch of each")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    torch.set_num_threads(args.cores)
    for name in RECIPES:
        for side in args.sides:
            own, timms = rates(name, side, args)
            ratio = statistics.median(mine / theirs for mine, theirs in zip(own, timms, strict=True))
            rate, theirs = statistics.median(own), statistics.median(timms)
            print(f"{name:4} {side:3} px  ours {rate:8,.0f}  timm {theirs:8,.0f} pictures/s  ratio {ratio:.1f}", flush=True)


def rates(name: str, side: int, args: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Pictures per second, ours and timm's, of each round; the first round is left out."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (args.pictures, side // 8, side // 8, 3), dtype=np.uint8)
    pixels = np.stack([np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in coarse])
    labels = rng.integers(0, CLASSES, args.pictures)
    device = torch.device(args.device)
    source = Resident(torch.from_numpy(pixels).to(device), torch.from_numpy(labels).to(device))
    loader = timms_loader(name, pixels, labels, args)
    measured = []
    for epoch in range(args.rounds + 1):
        own = rate(ours(name, source, epoch, args), device)
        measured.append((own, rate(timms(name, loader, device), device)))
    first, second = zip(*measured[1:], strict=True)
    return list(first), list(second)


def rate(shown: Iterator[tuple[Tensor, Tensor]], device: torch.device) -> float:
    started = time.perf_counter()
    count = sum(len(images) for images, _ in shown)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return count / (time.perf_counter() - started)


def ours(name: str, source: Resident, epoch: int, args: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    recipe = Training(
        duration="1000 epochs",
        batch_size=args.batch_size,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.05,
        warmup="0 epochs",
        label_smoothing=0.1,
        precision="float32",
        augmentation=RECIPES[name],
    )
    device, side = source.labels.device, source.pixels.shape[1]
    normalised, colours = Pixels.of(list(MEAN), list(STD), device), Colours.of(MEAN, STD, device)
    for images, labels in batches.training(source, recipe, colours, side=side, classes=CLASSES, seed=0, epoch=epoch):
        yield normalised(images).contiguous(), labels


class Pictures(Dataset):
    def __init__(self, pixels: np.ndarray, labels: np.ndarray, transform: transforms.Compose) -> None:
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[row])), int(self.labels[row])


def timms_loader(name: str, pixels: np.ndarray, labels: np.ndarray, args: argparse.Namespace) -> DataLoader:
    side = pixels.shape[1]
    return DataLoader(
        Pictures(pixels, labels, timms_transform(name, side)),
        args.batch_size,
        shuffle=True,
        num_workers=args.cores,
        drop_last=True,
        persistent_workers=True,
        pin_memory=args.device != "cpu",
    )


def timms_transform(name: str, side: int) -> transforms.Compose:
    """timm has no AutoAugment policy for CIFAR, torchvision has; "mmax9" keeps Pillow 13 from an error in timm's posterize."""
    if name == "li":
        about = {"scale": (0.08, 1.0), "interpolation": "bicubic", "re_prob": 0.25, "re_mode": "pixel"}
        policy = "rand-m9-mstd0.5-mmax9-inc1"
        return create_transform(side, is_training=True, auto_augment=policy, mean=MEAN, std=STD, **about)
    return transforms.Compose(
        [
            transforms.RandomCrop(side, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10, transforms.InterpolationMode.BILINEAR),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
            RandomErasing(probability=0.25, device="cpu"),
        ]
    )


def timms(name: str, loader: DataLoader, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    mixing = Mixup(mixup_alpha=1.0, cutmix_alpha=1.0, prob=0.5, label_smoothing=0.1, num_classes=CLASSES)
    for images, labels in loader:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        yield mixing(images, labels) if name == "lee" else (images, labels)


if __name__ == "__main__":
    main()

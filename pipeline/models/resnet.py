"""The CIFAR ResNet of He et al. 2016, section 4.2: three stages of 3x3 convolutions at full, half and quarter size."""

from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.models.base import Classifier


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; where the size or the width changes, the shortcut is a 1x1 convolution."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
        self.relu = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        return self.relu(self.shortcut(maps) + self.branch(maps))


class CifarResNet(Classifier):
    """Pictures (B, in_chans, H, W) of any size to logits (B, num_classes); depth 6n + 2.

    Initialisation: convolutions N(0, 2 / (k k out)), linear N(0, 0.01), BatchNorm 1 and 0.
    """

    def __init__(self, *, depth: int = 20, width: int = 16, in_chans: int = 3, num_classes: int = 1000) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        widths = [width, 2 * width, 4 * width]
        self.num_features = self.head_hidden_size = widths[-1]
        self.num_classes = num_classes
        self.stem = nn.Sequential(nn.Conv2d(in_chans, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.ModuleList(
            _stage(before, after, stride, blocks)
            for before, after, stride in zip([width, *widths], widths, (1, 2, 2), strict=False)
        )
        self.head = nn.Linear(widths[-1], num_classes)
        self.default_layers = [0, 1, 2]
        self.apply(_initialise)

    def forward_intermediates(self, images: Tensor, *, indices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """The maps (B, 4 * width, H / 4, W / 4) after the last stage, and those of the stages `indices`."""
        features, maps = self.stem(images), []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return features, [maps[index] for index in indices]

    def pooled(self, features: Tensor) -> Tensor:
        return features.mean((2, 3))


def _stage(channels_in: int, channels: int, stride: int, blocks: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)

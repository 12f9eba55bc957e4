"""What the networks of timm's get from us: feature taps, a stem, our stochastic depth."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from timm.layers import DropPath as TimmDropPath
from torch import Tensor, nn

from pipeline.models.base import DropPath

ToMap = Callable[[Any, Any], Tensor]  # a module's inputs and output -> its map (B, C, h, w)


class Tap:
    """A forward hook that keeps a module's output, as a map, while it is wanted. A copied network has taps of its own."""

    def __init__(self, to_map: ToMap) -> None:
        self.to_map = to_map
        self.wanted = False
        self.map: Tensor | None = None

    def __call__(self, _module: nn.Module, inputs: Any, output: Any) -> None:
        if self.wanted:
            self.map = self.to_map(inputs, output)


class Tapped(nn.Module):
    """Put before a network of timm's: a stem in front, our stochastic depth, and taps behind chosen modules.

    Everything else is timm's: initialisation, state names, forward_head, num_features, no_weight_decay, reset_classifier.
    """

    default_layers: list[int]
    patch_embed: Any
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Whatever timm's network has."""

    def adopt(self, tapped: Sequence[tuple[nn.Module, ToMap]], default_layers: list[int], stem: nn.Module) -> None:
        """To be called once the network is built."""
        self.taps = [Tap(to_map) for _, to_map in tapped]
        for (module, _), tap in zip(tapped, self.taps, strict=True):
            module.register_forward_hook(tap)
        self.default_layers = default_layers
        self.stem = stem
        for module in [*self.modules()]:
            for name, child in module.named_children():
                if isinstance(child, TimmDropPath):
                    setattr(module, name, DropPath(child.drop_prob))

    def forward_features(self, images: Tensor, **options: Any) -> Tensor:
        """The tokens or maps after the last layer, as forward_head takes them; options are timm's."""
        return super().forward_features(self.stem(images), **options)  # type: ignore[misc]

    def no_weight_decay(self) -> set[str]:
        """Names of matrices that should not decay, by timm; none for a CNN."""
        return set(getattr(super(), "no_weight_decay", set)())

    def forward_intermediates(self, images: Tensor, *, indices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """What forward_features gives, and the outputs of the layers `indices` as maps (B, C, h, w)."""
        taps = [self.taps[index] for index in indices]
        for tap in taps:
            tap.wanted = True
        try:
            features = self.forward_features(images)
            return features, [tap.map for tap in taps if tap.map is not None]
        finally:
            for tap in taps:
                tap.wanted, tap.map = False, None

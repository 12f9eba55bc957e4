"""What a network costs: parameters, multiply-accumulates, and pictures per second on this machine."""

import time
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

BATCH = 64
SECONDS = 1.0


def of(network: nn.Module, image_shape: Sequence[int]) -> dict[str, float]:
    """parameters; macs of one picture; inference_images_per_second in float32 at a batch of 64. image_shape is (H, W, C)."""
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "macs": macs(network, image_shape),
        "inference_images_per_second": round(speed(network, image_shape), 1),
    }


def macs(network: nn.Module, image_shape: Sequence[int]) -> int:
    """Multiply-accumulates of the convolutions and matrix products for one picture, exactly; norms are not counted."""
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):  # it cannot follow expanded tokens without grad
        network(_pictures(network, 1, image_shape))
    return counter.get_total_flops() // 2


def speed(network: nn.Module, image_shape: Sequence[int]) -> float:
    """Pictures per second in the fastest of the batches that fit into a second: other work on the machine only slows."""
    pictures = _pictures(network, BATCH, image_shape)
    times: list[float] = []
    with torch.inference_mode():
        network(pictures)
        while sum(times) < SECONDS:
            started = time.perf_counter()
            network(pictures)
            _wait(pictures.device)
            times.append(time.perf_counter() - started)
    return BATCH / min(times)


def _pictures(network: nn.Module, count: int, image_shape: Sequence[int]) -> torch.Tensor:
    height, width, channels = image_shape
    return torch.zeros(count, channels, height, width, device=next(network.parameters()).device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()

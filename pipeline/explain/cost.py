"""What a network costs: parameters, multiply-accumulates, memory, and pictures per second on this machine."""

import time
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

BATCH = 64
SECONDS = 1.0


def of(network: nn.Module, image_shape: Sequence[int]) -> dict[str, float]:
    """parameters; macs and activation_bytes of one picture; inference_images_per_second in float32 at a batch of 64, and
    on a GPU its inference_peak_bytes. image_shape is (H, W, C)."""
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "macs": macs(network, image_shape),
        "activation_bytes": activation_bytes(network, image_shape),
        "inference_images_per_second": round(speed(network, image_shape), 1),
        **({"inference_peak_bytes": peak_bytes(network, image_shape)} if _device(network).type == "cuda" else {}),
    }


def macs(network: nn.Module, image_shape: Sequence[int]) -> int:
    """Multiply-accumulates of the convolutions and matrix products for one picture, exactly; norms are not counted."""
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):  # it cannot follow expanded tokens without grad
        network(_pictures(network, 1, image_shape))
    return counter.get_total_flops() // 2


def activation_bytes(network: nn.Module, image_shape: Sequence[int]) -> int:
    """What one more picture in a batch keeps in memory, in float32, from its forward to its backward pass.

    This is what training's memory grows by; what a process holds on a CPU is mostly libraries, and is not told.
    """
    return (_kept_bytes(network, 4, image_shape) - _kept_bytes(network, 2, image_shape)) // 2


def _kept_bytes(network: nn.Module, count: int, image_shape: Sequence[int]) -> int:
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(_pictures(network, count, image_shape))  # while it lives, no two tensors have the same place
    assert logits.requires_grad
    return sum(kept.values())


def peak_bytes(network: nn.Module, image_shape: Sequence[int]) -> int:
    """The most memory that a batch of 64 needs on a GPU, the weights included, other tensors of the process not."""
    pictures = _pictures(network, BATCH, image_shape)
    others = torch.cuda.memory_allocated() - sum(weight.nbytes for weight in network.state_dict().values())
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        network(pictures)
    return torch.cuda.max_memory_allocated() - others


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
    return torch.zeros(count, channels, height, width, device=_device(network))


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()

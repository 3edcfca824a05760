"""A network's trunk as it runs: norms folded away, in its number type and memory layout, compiled where asked.

Nothing here changes what a network computes, but for rounding.
"""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from pipeline.models.allocator import keep_freed_memory
from pipeline.models.localize.runtime import Runtime, resolve_precision
from pipeline.models.networks.network import CamNetwork, Normalization
from schemas.errors import ModelError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """Gives the feature maps of uint8 pixels, on the runtime's device and in its number type.

    It keeps a copy of the trunk and leaves the network's own alone. Weights, not autocast, have the number type: on CPU
    that is up to a third faster (ConvNeXt 1.3 ×, MobileNetV2 1.05 ×) and the features are as close to float32's.

    A compiled trunk knows one shape of batch, and tensors that were made outside of inference mode: call it under
    ``torch.no_grad``, or it compiles anew. CUDA graphs are not used: at batches of 256 a forward pass takes tens of
    milliseconds on the GPU and its launches, which run ahead, about one; a graph would also bind the network to one
    thread, and two threads are what keeps the GPU at work (see ``Lane``).

    Threads may call it side by side.
    """

    def __init__(self, network: CamNetwork, runtime: Runtime) -> None:
        """``network`` is in evaluation mode, and the runtime's device is there."""
        self._name, self._side = network.name, network.preprocessing.image_size
        self.device = torch.device(runtime.device)
        if runtime.device == "cpu":
            keep_freed_memory()
        precision = resolve_precision(runtime.precision, runtime.device)
        # PyTorch runs float32 convolutions in TF32 on CUDA unless told not to: a whole trunk's, or some heads'.
        torch.backends.cudnn.allow_tf32 = False
        features = _Features(network, DTYPES[precision])
        features.to(self.device).to(memory_format=torch.channels_last).requires_grad_(False)
        self._batch_size = runtime.batch_size if runtime.compile else None
        self._eager = features
        self._features: Callable[[Tensor], Tensor] = (
            torch.compile(features, fullgraph=True, dynamic=False) if runtime.compile else features
        )
        self._lane = Lane(self.device) if runtime.device == "cuda" else None

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the feature maps (B, K, h, w) float32 of ``pixels`` (B, S, S, 3) uint8, both on the device.

        Compiled, any number of images runs as whole batches, the last one filled up with black pictures.
        """
        if self._batch_size is None:
            return self._features(pixels)
        missing = -len(pixels) % self._batch_size
        whole = torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])]) if missing else pixels
        parts = [self._features(part) for part in torch.split(whole, self._batch_size)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[: len(pixels)]

    def inputs(self, pixels: Tensor) -> Tensor:
        """Return what the trunk takes, (B, 3, S, S) in its number type, of ``pixels`` as a call takes them."""
        return self._eager.inputs(pixels)

    def features(self, inputs: Tensor) -> Tensor:
        """Return the feature maps of ``inputs``, which a gradient may flow back to; never compiled."""
        return self._eager.features(inputs)

    def warm_up(self, sides_px: Sequence[int] | None = None) -> None:
        """Compile the trunk now, where it is to be compiled, so that the first images don't wait for it.

        ``sides_px``: of the inputs, by default the network's own.
        Raises ModelError where this machine has no working compiler or the network can't be compiled.
        """
        if self._batch_size is None:
            return
        try:
            for side in sides_px or (self._side,):
                blank = torch.zeros(self._batch_size, side, side, 3, dtype=torch.uint8)
                with torch.no_grad(), self.at_work():
                    to_host([self(self.put(blank))])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # what all of PyTorch's compilers raise
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"--compile on: {self._name} can't be compiled here: {reason}") from error

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let the block's work on CUDA go through the calling thread's own stream, behind what it has enqueued."""
        if self._lane is None:
            yield
            return
        self._lane.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._lane.stream):
            yield

    def put(self, pixels: Tensor) -> Tensor:
        """Return ``pixels`` (B, S, S, 3) uint8 on the device; the copy may still be under way on the thread's stream.

        The next call in the same thread must wait until it is done, as it is when results of it have come back.
        """
        return pixels if self._lane is None or pixels.is_cuda else self._lane.put(pixels)


class Lane(threading.local):
    """Each thread's own way to the GPU: a stream, and page-locked memory that its batches pass through.

    With two threads the copies, the small kernels and the Python of one batch run beside the forward pass of the other.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._staging = torch.empty(0, dtype=torch.uint8)

    def put(self, pixels: Tensor) -> Tensor:
        """Return ``pixels`` on the device; the copy is enqueued on the current stream."""
        if self._staging.numel() < pixels.numel():
            self._staging = torch.empty(pixels.numel(), dtype=torch.uint8, pin_memory=True)
        staged = self._staging[: pixels.numel()].view(pixels.shape)
        return staged.copy_(pixels).to(self._device, non_blocking=True)


def to_host(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    """Return tensors as arrays; from CUDA all of them are copied before the current stream is waited for, once."""
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    if any(tensor.is_cuda for tensor in tensors):
        torch.cuda.current_stream().synchronize()
    return [copied.numpy() for copied in copies]


class _Features(nn.Module):
    """Pixels to feature maps, both as the rest of camlake wants them: uint8 in, float32 out."""

    def __init__(self, network: CamNetwork, dtype: torch.dtype) -> None:
        super().__init__()
        self._normalized = Normalization(network.preprocessing)
        self._trunk = _cast(_folded(network.trunk), dtype)
        self._dtype = dtype

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (B, K, h, w) float32."""
        return self.features(self.inputs(pixels))

    def inputs(self, pixels: Tensor) -> Tensor:
        """Return the normalized (B, 3, S, S) in the trunk's number type."""
        normalized: Tensor = self._normalized(pixels)
        return normalized.to(self._dtype)

    def features(self, inputs: Tensor) -> Tensor:
        """Return (B, K, h, w) float32."""
        features: Tensor = self._trunk(inputs)
        return features.float()


def _folded(trunk: nn.Module) -> nn.Module:
    """Return a copy of ``trunk`` with each batch norm behind a convolution folded into its weights, in float32."""
    if any(isinstance(module, nn.BatchNorm2d) for module in trunk.modules()):
        return fuse(trunk)
    return copy.deepcopy(trunk)


def _cast(trunk: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Give the weights of ``trunk`` the number type; batch norms that are left keep their statistics in float32."""
    for module in list(trunk.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LocalResponseNorm):
                setattr(module, name, _InFloat32(child))
        if not isinstance(module, nn.BatchNorm2d):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(dtype)
    return trunk


class _InFloat32(nn.Module):
    """A layer that sums squares, for which PyTorch has no kernel in other number types on CPU."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = layer

    def forward(self, maps: Tensor) -> Tensor:
        """Return what the layer gives, in the number type of ``maps``."""
        result: Tensor = self._layer(maps.float())
        return result.to(maps.dtype)

"""Runs a network's trunk fast: it folds norms and activations, chooses number type and memory layout, may compile it.

The results of the network stay the same, except for rounding.
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
from pipeline.models.localize.fused_activations import can_fuse, with_fused_activations
from pipeline.models.localize.runtime import Runtime, resolve_precision
from pipeline.models.localize.stride16 import Stride16Trunk, TrunkMaps
from pipeline.models.networks.found.tracing import follows, with_plain_norms
from pipeline.models.networks.network import CamNetwork, Normalization
from schemas.errors import ModelError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """Computes the feature maps of uint8 pixels on the runtime's device, in the runtime's number type.

    The engine copies the trunk and leaves the given network unchanged. The copy's weights have the number type, and
    autocast is not used: on CPU this is up to a third faster (ConvNeXt 1.3 ×, MobileNetV2 1.05 ×), and the features
    are as close to those of float32.

    A compiled trunk is compiled for one batch size and for tensors made outside of inference mode: call it under
    ``torch.no_grad``, otherwise it compiles again. CUDA graphs are not used: at batches of 256 a forward pass takes
    tens of milliseconds on the GPU and launching it, which happens in advance, about one. A graph would also bind the
    network to one thread, and two threads keep the GPU busy (see ``ThreadStream``).

    Several threads may use one object at the same time.
    """

    def __init__(self, network: CamNetwork, runtime: Runtime, stride16: str | None = None) -> None:
        """``network`` must be in evaluation mode, and the runtime's device must exist.

        ``stride16``: name of a tensor to return with the feature maps, see ``stride16_name``; None: no tensor.
        """
        self._name, self._side = network.name, network.preprocessing.image_size
        self.device = torch.device(runtime.device)
        if runtime.device == "cpu":
            keep_freed_memory()
        self.dtype = DTYPES[resolve_precision(runtime.precision, runtime.device)]
        """The number type in which the trunk computes."""
        # By default PyTorch runs float32 convolutions on CUDA in TF32; trunks and some heads have convolutions.
        torch.backends.cudnn.allow_tf32 = False
        # The sizes of the batches hardly change, so trying cuDNN's algorithms once for each of them pays.
        torch.backends.cudnn.benchmark = True
        fuse_activations = runtime.device == "cpu" and not runtime.compile and can_fuse(self.dtype)
        features = _Features(network, self.dtype, stride16, fuse_activations=fuse_activations)
        features.to(self.device).to(memory_format=torch.channels_last).requires_grad_(False)
        self._batch_size = runtime.batch_size if runtime.compile else None
        self._eager = features
        self._features: Callable[[Tensor], TrunkMaps] = (
            torch.compile(features, fullgraph=True, dynamic=False) if runtime.compile else features
        )
        self._stream = ThreadStream(self.device) if runtime.device == "cuda" else None

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the feature maps (B, K, h, w) float32 of ``pixels`` (B, S, S, 3) uint8, both on the device."""
        return self.trunk_maps(pixels).features

    def trunk_maps(self, pixels: Tensor) -> TrunkMaps:
        """Return the results of one forward pass on ``pixels`` (B, S, S, 3) uint8, on the device.

        A compiled trunk runs whole batches; black pictures fill up the last batch, and their maps are dropped.
        """
        if self._batch_size is None:
            return self._features(pixels)
        missing = -len(pixels) % self._batch_size
        whole = torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])]) if missing else pixels
        parts = [self._features(part) for part in torch.split(whole, self._batch_size)]
        features = _joined([part.features for part in parts], len(pixels))
        tensors = [part.stride16 for part in parts if part.stride16 is not None]
        return TrunkMaps(features, _joined(tensors, len(pixels)) if tensors else None)

    def inputs(self, pixels: Tensor) -> Tensor:
        """Return ``pixels`` (B, S, S, 3) uint8 as the trunk's input: (B, 3, S, S), normalized, in its number type."""
        return self._eager.inputs(pixels)

    def trunk_maps_of(self, inputs: Tensor) -> TrunkMaps:
        """Return the trunk's results for normalized ``inputs`` (see ``inputs``), with gradients, never compiled."""
        return self._eager.features(inputs)

    def warm_up(self, sides_px: Sequence[int] | None = None) -> None:
        """Compile the trunk now, if the runtime asks for it, so that the first images need not wait.

        ``sides_px``: the sides of the inputs to compile for; by default the network's own.
        Raises ModelError, which fails the run, where this machine has no working compiler for the network.
        """
        if self._batch_size is None:
            return
        try:
            for side in sides_px or (self._side,):
                blank = torch.zeros(self._batch_size, side, side, 3, dtype=torch.uint8)
                with torch.no_grad(), self.on_stream():
                    to_host([self(self.to_device(blank))])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # all compilers of PyTorch raise this type
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"--compile on: {self._name} can't be compiled here: {reason}") from error

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        """Run the block's CUDA work on a stream of the calling thread, after the work that is already enqueued."""
        if self._stream is None:
            yield
            return
        self._stream.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream.stream):
            yield

    def to_device(self, pixels: Tensor | Sequence[Tensor]) -> Tensor:
        """Return ``pixels`` (B, S, S, 3) uint8 on the device; on CUDA the copy may still run on the thread's stream.

        ``pixels`` may come in several parts. The same thread may call this again only when the copy is done, for
        example after ``to_host`` of a result.
        """
        parts = [pixels] if isinstance(pixels, Tensor) else list(pixels)
        if self._stream is None or parts[0].is_cuda:
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        return self._stream.to_device(parts)


class Staging(threading.local):
    """Memory of each thread through which its batches are copied to a device; page-locked where that is CUDA."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._staging = torch.empty(0, dtype=torch.uint8)

    def to_device(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the rows of all parts, uint8, on the device; on CUDA the copy is enqueued on the current stream.

        Each part is copied once, to its place in the memory.
        """
        size = sum(part.numel() for part in parts)
        if self._staging.numel() < size:
            self._staging = torch.empty(size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        staged = self._staging[:size].view(-1, *parts[0].shape[1:])
        start = 0
        for part in parts:
            staged[start : start + len(part)].copy_(part)
            start += len(part)
        return staged.to(self._device, non_blocking=True)


class ThreadStream(Staging):
    """A CUDA stream for each thread beside its page-locked memory.

    With two threads the copies, the small kernels and the Python code of one batch run during the forward pass of the
    other batch.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def to_host(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    """Return tensors as arrays; all copies from CUDA are enqueued first, then their stream is waited for once."""
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return [tensor.numpy() for tensor in copies]


class _Features(nn.Module):
    """Normalization and trunk in one module: uint8 pixels in, float32 feature maps out."""

    def __init__(
        self, network: CamNetwork, dtype: torch.dtype, stride16: str | None, *, fuse_activations: bool
    ) -> None:
        super().__init__()
        self._normalized = Normalization(network.preprocessing)
        trunk = _folded(network.trunk if stride16 is None else Stride16Trunk(network.trunk, stride16))
        trunk = with_fused_activations(trunk) if fuse_activations and follows(network.trunk) else trunk
        self._trunk, self._both = _cast(trunk, dtype), stride16 is not None
        self._dtype = dtype

    def forward(self, pixels: Tensor) -> TrunkMaps:
        """Return the trunk's results for ``pixels`` (B, S, S, 3) uint8."""
        return self.features(self.inputs(pixels))

    def inputs(self, pixels: Tensor) -> Tensor:
        """Return the normalized (B, 3, S, S) in the trunk's number type."""
        normalized: Tensor = self._normalized(pixels)
        return normalized.to(self._dtype)

    def features(self, inputs: Tensor) -> TrunkMaps:
        """Return the trunk's results for normalized ``inputs`` (B, 3, S, S)."""
        features, stride16 = self._trunk(inputs) if self._both else (self._trunk(inputs), None)
        return TrunkMaps(features.float(), stride16)


def _joined(parts: Sequence[Tensor], images: int) -> Tensor:
    """Return the first ``images`` rows of all parts; one part is not copied."""
    return (parts[0] if len(parts) == 1 else torch.cat(list(parts)))[:images]


def _folded(trunk: nn.Module) -> nn.Module:
    """Return a copy of ``trunk``, in float32, with each batch norm folded into the convolution before it.

    Where torch.fx can't follow the trunk, the batch norms stay.
    """
    if follows(trunk) and any(isinstance(module, nn.BatchNorm2d) for module in trunk.modules()):
        return fuse(with_plain_norms(trunk))
    return copy.deepcopy(trunk)


def _cast(trunk: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the weights of ``trunk`` to ``dtype`` in place; statistics of remaining batch norms stay in float32."""
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
    """Runs a layer in float32. It is for layers that sum squares, for which PyTorch has only float32 on CPU."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = layer

    def forward(self, maps: Tensor) -> Tensor:
        """Return the layer's result in the number type of ``maps``."""
        result: Tensor = self._layer(maps.float())
        return result.to(maps.dtype)

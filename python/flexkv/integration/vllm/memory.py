"""Where a worker's KV cache lies: pointer, strides and bytes of every layer, as opaque blocks.

The bytes of a block are never interpreted: kernels arrange them as they like. Knows nothing of what
is copied, or when.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flexkv.integration.vllm.namespace import Unsupported

Region = tuple[int, int, int, int]
"""Address, bytes from block to block, bytes of a block, number of blocks."""


def regions(caches: Mapping[str, Any], layers: Iterable[str], num_blocks: int) -> list[Region]:
    """The regions that hold block after block of each of `layers`, in their order."""
    ordered = [name for name in layers if name in caches] or sorted(caches)
    if len(ordered) != len(caches):
        ordered = sorted(caches)
    return [region for name in ordered for region in _layer(name, caches[name], num_blocks)]


def _layer(name: str, tensor: Any, num_blocks: int) -> list[Region]:
    """One region, or one for keys and one for values where these lie apart."""
    if not hasattr(tensor, "data_ptr"):
        raise Unsupported(f"the KV cache of {name} is no tensor but a {type(tensor).__name__}")
    if tensor.device.type != "cpu":
        raise Unsupported(f"the KV cache lies on {tensor.device}, which this version cannot reach")
    shape, strides, element = list(tensor.shape), list(tensor.stride()), tensor.element_size()
    at = next((i for i, size in enumerate(shape[:2]) if size and size % num_blocks == 0), None)
    if at is None:
        raise Unsupported(
            f"the KV cache of {name}, {shape}, has no dimension of {num_blocks} blocks"
        )
    split = shape[at] // num_blocks
    inner = _dense(name, shape[at + 1 :], strides[at + 1 :])
    if split > 1 and strides[at] != inner:
        raise Unsupported(f"the parts of a block of {name} do not lie beside each other")
    stride, size = strides[at] * split * element, inner * split * element
    parts = shape[0] if at == 1 else 1
    step = strides[0] * element if at == 1 else 0
    return [(tensor.data_ptr() + part * step, stride, size, num_blocks) for part in range(parts)]


def _dense(name: str, shape: list[int], strides: list[int]) -> int:
    """Elements of one block, which must lie together in whatever order."""
    count = 1
    for size in shape:
        count *= size
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if span != count:
        raise Unsupported(f"a block of {name} spans {span} elements and has {count}")
    return count

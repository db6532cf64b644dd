"""Where blocks lie in a KV cache, for the shapes that vLLM's attention backends have."""

import pytest

from flexkv.integration.vllm.memory import regions
from flexkv.integration.vllm.namespace import Unsupported


class Tensor:
    """What `regions` reads of a tensor."""

    def __init__(
        self, shape: list[int], strides: list[int] | None = None, device: str = "cpu"
    ) -> None:
        self.shape = shape
        dense = [1]
        for size in reversed(shape[1:]):
            dense.insert(0, dense[0] * size)
        self._strides = strides or dense
        self.device = type("Device", (), {"type": device})()

    def stride(self) -> list[int]:
        return self._strides

    def element_size(self) -> int:
        return 2

    def data_ptr(self) -> int:
        return 1000


def test_blocks_first() -> None:
    assert regions({"l": Tensor([10, 2, 8, 4])}, ["l"], 10) == [(1000, 128, 128, 10)]


def test_keys_and_values_apart() -> None:
    assert regions({"l": Tensor([2, 10, 8, 4])}, ["l"], 10) == [
        (1000, 64, 64, 10),
        (1000 + 640, 64, 64, 10),
    ]


def test_blocks_of_layers_between_each_other() -> None:
    tensor = Tensor([10, 8, 4], strides=[64, 4, 1])
    assert regions({"l": tensor}, ["l"], 10) == [(1000, 128, 64, 10)]


def test_kernels_with_smaller_blocks() -> None:
    assert regions({"l": Tensor([40, 8, 4])}, ["l"], 10) == [(1000, 256, 256, 10)]


def test_heads_before_tokens_in_memory() -> None:
    tensor = Tensor([10, 8, 2, 4], strides=[64, 4, 32, 1])
    assert regions({"l": tensor}, ["l"], 10) == [(1000, 128, 128, 10)]


def test_layers_come_in_the_order_of_the_deployment() -> None:
    caches = {"b": Tensor([10, 4]), "a": Tensor([10, 8])}
    assert [size for _, _, size, _ in regions(caches, ["b", "a"], 10)] == [8, 16]


@pytest.mark.parametrize(
    ("tensor", "expect"),
    [
        (Tensor([7, 8]), "no dimension of 10 blocks"),
        (Tensor([10, 8, 4], strides=[64, 8, 1]), "spans 60 elements and has 32"),
        (Tensor([20, 8, 4], strides=[64, 4, 1]), "do not lie beside each other"),
        (Tensor([10, 8], device="cuda"), "cannot reach"),
        (object(), "is no tensor"),
    ],
)
def test_what_cannot_be_reached_is_named(tensor: object, expect: str) -> None:
    with pytest.raises(Unsupported, match=expect):
        regions({"l": tensor}, ["l"], 10)

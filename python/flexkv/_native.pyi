"""The native half of FlexKV: keys, sessions with the node, copies, the command.

Calls let go of the interpreter while they wait. Arguments that make no sense raise `FlexkvError`
(or `TypeError`, `OverflowError` where the type is wrong); a node that is gone raises `NodeGone`.
"""

from collections.abc import Sequence
from os import PathLike
from typing import TypedDict, final

__version__: str

class FlexkvError(Exception):
    """A call makes no sense, or the configuration is wrong."""

class NodeGone(FlexkvError):
    """The cache node is gone. Go on without a cache; attach again later."""

class Namespace(TypedDict):
    """What must be equal before two engines may share a block. Exists for type checkers only."""

    model: str
    revision: str
    dtype: str
    engine_layout: str
    tokens_per_block: int
    layers: list[int]
    """Opaque bytes per block of each layer."""
    tensor_parallel: int
    pipeline_parallel: int

def derive_root(
    namespace: Namespace,
    secret: bytes,
    tensor_rank: int,
    pipeline_stage: int,
    lora: str,
    salt: str,
    multimodal: list[bytes],
) -> tuple[str, bytes]:
    """The namespace's id in hexadecimal, and the 16-byte key before the first block of a request.

    `tensor_rank` and `pipeline_stage` name the shard; the rest separates requests.
    """

@final
class KeyChain:
    """Computes the keys of a prompt, block by block. For one thread at a time."""

    def __new__(cls, root: bytes, secret: bytes, tokens_per_block: int) -> KeyChain: ...
    def extend(self, tokens: Sequence[int]) -> bytes:
        """Appends tokens; the keys of the blocks that they complete, 16 bytes each."""

@final
class Attachment:
    """A session with the node of this host. For any number of threads, in one process.

    In a forked child every call raises `NodeGone`.
    """

    def __new__(cls, socket: str | PathLike[str], timeout_s: float) -> Attachment:
        """Waits until the node listens at `socket`, at most `timeout_s`."""

    @property
    def namespace(self) -> str:
        """Id of the namespace whose blocks the node holds, in hexadecimal."""

    @property
    def block_bytes(self) -> int:
        """Bytes of every block."""

    @property
    def gone(self) -> bool:
        """Whether the session has ended. It never comes back: attach again."""

    def match(self, keys: bytes) -> tuple[int, int, int]:
        """How much of a prompt exists: ticket, leading blocks, how many of them are here.

        The ticket is to be cancelled in the end, whatever was done with it.
        """

    def launch(
        self, ticket: int, blocks: int, deadline_s: float, recompute_s: float | None = None
    ) -> None:
        """Starts bringing the first `blocks` blocks here; what is verified by then is the result.

        Blocks that would take longer than `recompute_s` each are left to be computed.
        """

    def poll(self, ticket: int) -> tuple[list[int], int, int] | None:
        """What a launched ticket brought, or `None` while it is under way.

        Offsets in the arena of the verified leading blocks, how many were here, how many came from
        peers. The blocks stay where they are until the ticket is cancelled.
        """

    def wait(self, ticket: int, timeout_s: float) -> tuple[list[int], int, int] | None:
        """As `poll`, but waits; `None` after `timeout_s`."""

    def checksums(self, ticket: int) -> list[int]:
        """The checksums of the blocks whose offsets `poll` gave, for `Copier.load`."""

    def cancel(self, ticket: int) -> None:
        """Gives up all that a ticket holds. A ticket that is not known holds nothing."""

    def prefetch(self, keys: bytes, deadline_s: float) -> int:
        """Brings what exists of a prompt here for whoever asks next.

        The ticket ends by itself; it serves to cancel it earlier.
        """

    def removed(self) -> tuple[bytes, int]:
        """Keys of blocks that the node no longer holds, and how many more there were.

        Since the last call, 16 bytes each; the first call begins it. They are hints, some
        milliseconds late. What nobody takes is counted beyond 65,536 keys.
        """

@final
class Copier:
    """Copies between the arena and a worker's KV memory, in threads of its own.

    Each layer is (address of block 0, stride between blocks, bytes of a block, number of blocks);
    the layers' bytes lie one after the other in a cache block. Whoever makes a Copier promises that
    this memory stays readable and writable until `shutdown` returns, and that no block is written
    while a job stores it, or used while a job loads it.
    """

    def __new__(
        cls,
        attachment: Attachment,
        layers: Sequence[tuple[int, int, int, int]],
        threads: int = 1,
    ) -> Copier: ...
    def load(
        self,
        job: int,
        offsets: Sequence[int],
        block_ids: Sequence[int],
        checksums: Sequence[int] | None = None,
    ) -> None:
        """Fills blocks of the worker from the arena; `job` is handed back by `drain`.

        The ticket that gave the offsets must be held until then. With checksums the bytes are
        verified once more while they are copied.
        """

    def store(self, job: int, keys: bytes, first: int, block_ids: Sequence[int]) -> None:
        """Stores blocks of the worker as `keys[first:]`, a number for each of these keys."""

    def drain(self) -> list[tuple[int, bool, list[int], int]]:
        """The jobs that have ended since the last call.

        Job, whether all was done, the block ids for which it was not, bytes copied. A store that
        the cache did not want, because it has the block or no room, is done.
        """

    def pending(self) -> int:
        """Jobs that have not ended."""

    def shutdown(self) -> None:
        """Ends all jobs and threads; then the memory is not touched any more."""

def run_command(argv: Sequence[str]) -> int:
    """Runs the `flexkv` command with the arguments after its name; its exit code."""

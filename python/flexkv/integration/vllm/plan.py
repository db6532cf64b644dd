"""What the scheduler tells the workers with each step, and what they tell back.

Plain values that pickle. Knows nothing of how they are carried out.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Load:
    """Blocks of a request to be copied out of the node's arena."""

    request: str
    block_ids: list[int]
    offsets: list[list[int]]
    """By shard: where in the arena each block is, parallel to `block_ids`."""
    checksums: list[list[int]]
    """By shard: of the same blocks, to be compared once more while copying."""


@dataclass(slots=True)
class Save:
    """Blocks of a request to be stored in the node."""

    job: int
    request: str
    keys: list[bytes]
    """By shard: 16 bytes for each leading block of the request."""
    first: int
    """The block that `block_ids` begins with."""
    block_ids: list[int]


@dataclass(slots=True)
class Plan:
    """One step, and the deployment it belongs to, so that both sides mean the same one."""

    namespace: str = ""
    block_bytes: int = 0
    number: int = 0
    idle: bool = False
    """Nothing is computed in this step."""
    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    flush: list[str] = field(default_factory=list)
    """Requests whose blocks may be overwritten by this step: their saves must end first."""
    release: list[str] = field(default_factory=list)
    """Finished requests whose blocks are free once their saves have ended."""


@dataclass(slots=True)
class Report:
    """What became of saves: per job, how many workers ended it, and how many did so well."""

    saves: dict[int, tuple[int, int]] = field(default_factory=dict)

    def add(self, other: Report) -> None:
        """Adds what another worker reports."""
        for job, (ended, well) in other.saves.items():
            had = self.saves.get(job, (0, 0))
            self.saves[job] = (had[0] + ended, had[1] + well)

"""The worker side: carries out the plans of the scheduler side on this worker's KV cache.

Copies run in threads of the native copier. Loads end in `finished`; saves keep their blocks until
they end, by which time the scheduler has been told or, if the blocks are about to be overwritten,
has been made to wait. Whatever cannot be done is reported as ended. Knows nothing of prompts.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

from flexkv.integration.vllm.metrics import Counters, FlexKVStats
from flexkv.integration.vllm.plan import Load, Plan, Report, Save

logger = logging.getLogger("vllm.flexkv")

_FLUSH_S = 30.0
"""Saves that block a step end within this, or their blocks are given up as they are."""
_IDLE_WAIT_S = 0.002
"""A step with nothing to compute waits so long for copies instead of spinning."""
_NAP_S = 0.0002

MakeCopier = Callable[[Plan], tuple[Any, Any] | None]
"""Makes a copier for the deployment of a plan, with its attachment; None without a node."""


class WorkerSide:
    """One worker's copies."""

    def __init__(self, make_copier: MakeCopier, shard: int) -> None:
        """`shard` is this worker's place in the lists of a plan."""
        self._make_copier = make_copier
        self._shard = shard
        self._copier: Any = None
        self._attachment: Any = None
        self._counters = Counters()
        self._numbers = itertools.count(1)
        self._loading: dict[int, Load] = {}
        self._saving: dict[int, Save] = {}
        self._releasing: set[str] = set()
        self._received: set[str] = set()
        self._failed: set[int] = set()
        self._report = Report()
        self._begun = 0
        self._submitted = 0

    # One step, in the order in which versions of vLLM call these, each perhaps more than once

    def begin(self, plan: Plan) -> None:
        """Before anything is overwritten: ends the saves whose blocks may be."""
        if plan.number == self._begun:
            return
        self._begun = plan.number
        if plan.flush:
            self._flush(set(plan.flush))

    def start_loads(self, plan: Plan) -> None:
        """Starts the step's loads."""
        self.begin(plan)
        loads, plan.loads = plan.loads, []
        for load in loads:
            self._start(load, plan)

    def start_saves(self, plan: Plan) -> None:
        """Starts the step's saves: what they read has been computed."""
        self.start_loads(plan)
        if plan.number == self._submitted:
            return
        self._submitted = plan.number
        for save in plan.saves:
            self._save(save, plan)
        self._releasing.update(plan.release)

    def finished(self, plan: Plan | None) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose saves have all ended after their end, and requests that are loaded."""
        if plan is not None:
            self.start_saves(plan)
        self._collect()
        if plan is not None and plan.idle and self._awaited():
            self._nap()
        busy = {save.request for save in self._saving.values()}
        sent = self._releasing - busy
        self._releasing -= sent
        received, self._received = self._received, set()
        return sent or None, received or None

    def load_errors(self) -> set[int]:
        """Blocks whose load failed."""
        failed, self._failed = self._failed, set()
        return failed

    def report(self) -> Report | None:
        """What became of saves since the last call."""
        if not self._report.saves:
            return None
        report, self._report = self._report, Report()
        return report

    def stats(self) -> FlexKVStats | None:
        """What was counted since the last call."""
        return self._counters.take()

    def close(self) -> None:
        """Ends the copies, those under way without success."""
        if self._copier is not None:
            self._copier.shutdown()
            self._collect()
            self._copier = self._attachment = None

    # How

    def _start(self, load: Load, plan: Plan) -> None:
        number = next(self._numbers)
        try:
            offsets, checksums = load.offsets[self._shard], load.checksums[self._shard]
            self._copier_for(plan).load(number, offsets, load.block_ids, checksums)
        except Exception as error:
            logger.warning("FlexKV: a load cannot start, its request is recomputed: %s", error)
            self._end_load(load, load.block_ids)
            return
        self._loading[number] = load

    def _save(self, save: Save, plan: Plan) -> None:
        number = next(self._numbers)
        try:
            copier = self._copier_for(plan)
            copier.store(number, save.keys[self._shard], save.first, save.block_ids)
        except Exception as error:
            logger.debug("FlexKV: blocks are not saved: %s", error)
            self._end_save(save, well=False)
            return
        self._saving[number] = save

    def _copier_for(self, plan: Plan) -> Any:
        """The copier, made again if its node went."""
        if self._copier is not None and self._attachment.gone:
            self.close()
            self._abandon()
        if self._copier is None:
            made = self._make_copier(plan)
            if made is None:
                raise RuntimeError("there is no node now")
            self._copier, self._attachment = made
        return self._copier

    def _collect(self) -> None:
        """Takes note of the copies that have ended."""
        if self._copier is None:
            return
        for number, well, bad, moved in self._copier.drain():
            load = self._loading.pop(number, None)
            if load is not None:
                self._counters.add("loaded_bytes", moved)
                self._end_load(load, bad if well or bad else load.block_ids)
            save = self._saving.pop(number, None)
            if save is not None:
                self._counters.add("stored_bytes", moved)
                self._end_save(save, well)

    def _end_load(self, load: Load, bad: list[int]) -> None:
        self._received.add(load.request)
        self._failed.update(bad)
        self._counters.add("loaded_blocks", len(load.block_ids) - len(bad))

    def _end_save(self, save: Save, well: bool) -> None:
        self._report.add(Report({save.job: (1, int(well))}))
        if well:
            self._counters.add("stored_blocks", len(save.block_ids))
        else:
            self._counters.add("failed_stores")

    def _flush(self, requests: set[str]) -> None:
        """Waits until the saves of these requests have ended."""
        deadline = time.monotonic() + _FLUSH_S
        while any(save.request in requests for save in self._saving.values()):
            self._collect()
            if time.monotonic() > deadline:
                logger.error("FlexKV: saves did not end in %s s; saving stops", _FLUSH_S)
                self.close()
                self._abandon()
                return
            time.sleep(_NAP_S)

    def _abandon(self) -> None:
        """Reports everything that was under way as failed."""
        for save in self._saving.values():
            self._end_save(save, well=False)
        for load in self._loading.values():
            self._end_load(load, load.block_ids)
        self._saving.clear()
        self._loading.clear()

    def _awaited(self) -> bool:
        """Whether the scheduler waits for something that is not there yet."""
        saves = any(save.request in self._releasing for save in self._saving.values())
        return not self._received and (bool(self._loading) or saves)

    def _nap(self) -> None:
        """Waits a moment for copies to end."""
        until = time.monotonic() + _IDLE_WAIT_S
        while self._awaited() and time.monotonic() < until:
            time.sleep(_NAP_S)
            self._collect()

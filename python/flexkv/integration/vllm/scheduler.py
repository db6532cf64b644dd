"""The scheduler side: what to promise, what to load, what to save, and when blocks are free.

Verify first, promise after: a prefix is promised to vLLM only when its blocks are verified and
pinned in the node's arena, so that a promised load does not fail. Until then the answer is "ask
again". Works on vLLM's objects without importing vLLM. Knows nothing of how bytes are copied.
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass
from typing import Any

from flexkv.integration.vllm.events import Announcer, Offer
from flexkv.integration.vllm.fetch import Fetch
from flexkv.integration.vllm.metrics import Counters, FlexKVStats
from flexkv.integration.vllm.plan import Load, Plan, Report, Save
from flexkv.integration.vllm.prefill import PrefillRate
from flexkv.integration.vllm.requests import KEY_BYTES, KeysOf, Tracked

logger = logging.getLogger("vllm.flexkv")

_STEP_WAIT_S = 0.002
"""All lookups between two steps wait so long together: for blocks of this host, which are ready by
then, and for any if there is nothing else to do. More would hold up requests that compute."""
_ASK_AGAIN_S = 0.1
"""A lookup that found nothing is repeated after this."""
_HOLD_S = 10.0
"""Blocks that were promised and not taken are let go after this."""
_MOST_FETCHES = 256


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the scheduler side is to behave, by settings and by the version of vLLM."""

    tokens_per_block: int
    fetch_deadline_s: float
    loads: bool = True
    saves: bool = True
    answers_later: bool = True
    worker_reports: bool = True
    keeps_aborted: bool = True
    workers: int = 1
    recompute_tokens_per_second: float | None = None


class SchedulerSide:
    """One engine's requests."""

    def __init__(self, link: Any, keys_of: KeysOf, how: Behaviour, announcer: Announcer) -> None:
        """`link` gives the attachment to the node, if there is one now."""
        self._link = link
        self._keys_of = keys_of
        self._how = how
        self._announcer = announcer
        self._counters = Counters()
        self._tracked: dict[str, Tracked] = {}
        self._leaving: dict[str, Fetch] = {}
        self._loads: list[Load] = []
        self._saves: list[Save] = []
        self._releases: list[str] = []
        self._jobs = itertools.count(1)
        self._steps = itertools.count(1)
        self._open: dict[int, tuple[str, Offer | None, list[int]]] = {}
        self._prefill = PrefillRate(how.recompute_tokens_per_second)
        self._watched: Any = None
        self._idle = True
        self._patience_s = _STEP_WAIT_S

    # What vLLM asks for

    def matched(self, request: Any, computed: int) -> tuple[int | None, bool]:
        """Tokens that can be loaded beyond the first `computed`, or None for "ask again"."""
        tracked = self._track(request)
        if not self._may_load(tracked):
            tracked.release()
            return 0, False
        size = self._how.tokens_per_block
        tracked.local = computed // size
        limit = (request.num_tokens - 1) // size
        if limit <= tracked.local:
            tracked.release()
            return 0, False
        if tracked.fetch is not None and self._held_too_long(tracked.fetch):
            tracked.release()
        if tracked.fetch is None:
            answer = self._begin(tracked, limit)
            if answer is not None:
                return answer
        return self._progress(tracked, limit)

    def allocated(self, request: Any, block_ids: list[int], external: int) -> None:
        """vLLM took `external` tokens of what was promised and has blocks for them."""
        tracked = self._tracked.get(request.request_id)
        if tracked is None or tracked.loading:
            return
        fetch = tracked.fetch
        if external == 0 or fetch is None:
            tracked.release()
            return
        count = external // self._how.tokens_per_block
        first = tracked.local
        tracked.loading = True
        tracked.load_blocks = list(block_ids[first : first + count])
        tracked.kept = first + count
        remote = min(count, fetch.remote())
        tracked.hits = {"local": (count - remote) * self._how.tokens_per_block}
        tracked.hits["remote"] = external - tracked.hits["local"]
        self._counters.add("hit_tokens_local", tracked.hits["local"])
        self._counters.add("hit_tokens_remote", tracked.hits["remote"])
        offsets, checksums = fetch.offsets(first, count), self._checksums(fetch, first, count)
        self._loads.append(Load(request.request_id, tracked.load_blocks, offsets, checksums))

    def plan(self, output: Any) -> Plan:
        """What the workers do in the step that vLLM has just scheduled."""
        self._idle = output.total_num_scheduled_tokens == 0
        self._prefill.scheduled(output.total_num_scheduled_tokens, time.monotonic())
        self._patience_s = _STEP_WAIT_S
        plan = Plan(number=next(self._steps), idle=self._idle)
        plan.flush = self._preempted(output)
        plan.saves = self._saves
        self._saves = []
        before = self._follow_blocks(output)
        for name, scheduled in output.num_scheduled_tokens.items():
            tracked = self._tracked.get(name)
            if tracked is not None:
                known = tracked.request.num_tokens
                computed = min(before.get(name, 0) + scheduled, known)
                self._save_full_blocks(tracked, computed, plan.saves)
        plan.loads, self._loads = self._loads, []
        plan.release, self._releases = self._releases, []
        return plan

    def received(self, output: Any) -> None:
        """What the workers tell after a step."""
        invalid = getattr(output, "invalid_block_ids", None) or set()
        if invalid:
            self._failed(invalid)
        for name in output.finished_recving or ():
            self._loaded(name)
        for name in output.finished_sending or ():
            self._sent(name)

    def reported(self, report: Report) -> None:
        """What the workers tell of saves."""
        for job, (ended, well) in report.saves.items():
            self._ended(job, ended, well)

    def finished(self, request: Any) -> tuple[bool, dict[str, Any] | None]:
        """Whether the request's blocks must be kept for now, and what its response shall tell."""
        tracked = self._tracked.pop(request.request_id, None)
        if tracked is None:
            return False, None
        if tracked.loading and tracked.fetch is not None:
            self._leaving[request.request_id] = tracked.fetch
            return self._keep_for_load(request.request_id), self._told(tracked)
        tracked.release()
        computed = min(request.num_computed_tokens, request.num_tokens - 1)
        self._save_full_blocks(tracked, computed, self._saves)
        if not tracked.open_saves:
            return False, self._told(tracked)
        self._releases.append(request.request_id)
        return True, self._told(tracked)

    def hits(self, request: Any) -> dict[str, int]:
        """Tokens of the request that were loaded, by where they came from."""
        tracked = self._tracked.get(request.request_id)
        return dict(tracked.hits) if tracked is not None else {}

    def reset(self) -> bool:
        """Nothing computed so far may be used or saved any more; False if some of it is just being
        copied for a request, which will use it."""
        for tracked in self._tracked.values():
            tracked.release()
            tracked.keys = None
        self._saves.clear()
        self._announcer.cleared()
        return not any(tracked.loading for tracked in self._tracked.values())

    def stats(self) -> FlexKVStats | None:
        """What was counted since the last call."""
        return self._counters.take()

    def events(self) -> list[Any]:
        """KV events since the last call."""
        self._note_removals()
        return self._announcer.take()

    def close(self) -> None:
        """Gives back what the node holds for this engine."""
        for tracked in self._tracked.values():
            if tracked.fetch is not None:
                tracked.fetch.release()
        for fetch in self._leaving.values():
            fetch.release()
        self._tracked.clear()
        self._leaving.clear()

    # Loading

    def _track(self, request: Any) -> Tracked:
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            tracked = Tracked(request, self._keys_of(request))
            self._tracked[request.request_id] = tracked
        return tracked

    def _may_load(self, tracked: Tracked) -> bool:
        request = tracked.request
        sampling = getattr(request, "sampling_params", None)
        return (
            self._how.loads
            and tracked.may_load
            and not tracked.loading
            and tracked.keys is not None
            and not getattr(request, "skip_reading_prefix_cache", False)
            and getattr(sampling, "prompt_logprobs", None) is None
            and getattr(request, "pooling_params", None) is None
        )

    def _held_too_long(self, fetch: Fetch) -> bool:
        since = fetch.ready_since
        return since is not None and time.monotonic() - since > _HOLD_S

    def _begin(self, tracked: Tracked, limit: int) -> tuple[int | None, bool] | None:
        """Looks the prompt up. An answer if there is nothing to wait for."""
        now = time.monotonic()
        if now - tracked.asked_at < _ASK_AGAIN_S:
            return 0, False
        attachment = self._link.get()
        if attachment is None:
            self._missed(tracked, now, "unavailable")
            return 0, False
        if sum(each.fetch is not None for each in self._tracked.values()) >= _MOST_FETCHES:
            return (None if self._how.answers_later else 0), False
        assert tracked.keys is not None
        keys = tracked.keys.leading(limit, tracked.request.all_token_ids)
        size = self._how.tokens_per_block
        self._counters.add("lookups")
        self._counters.add("lookup_tokens", (limit - tracked.local) * size)
        rate = self._prefill.tokens_per_second()
        recompute_s = None if rate is None else size / rate
        if rate is not None:
            self._counters.tell("recompute_tokens_per_second", rate)
        deadline_s = self._how.fetch_deadline_s
        fetch = Fetch.begin(attachment, keys, tracked.local, deadline_s, recompute_s)
        self._announcer.missing(keys[0][fetch.blocks * KEY_BYTES :])
        if fetch.blocks <= tracked.local:
            tracked.kept = fetch.blocks
            self._missed(tracked, now)
            return 0, False
        tracked.fetch = fetch
        if fetch.here == fetch.blocks:
            self._polled(fetch, self._patience_s)
        return None

    def _progress(self, tracked: Tracked, limit: int) -> tuple[int | None, bool]:
        """The answer for a prompt whose blocks are being brought, or are here."""
        fetch = tracked.fetch
        assert fetch is not None
        wait_s = self._patience_s if self._idle else 0.0
        if not self._how.answers_later:
            wait_s = fetch.remaining_s()
        if not self._polled(fetch, wait_s):
            return None, False
        if fetch.timed_out():
            self._counters.add("fetch_timeouts")
        blocks = min(fetch.verified(), limit)
        tracked.kept = fetch.verified()
        if blocks <= tracked.local:
            self._missed(tracked, time.monotonic())
            return 0, False
        return (blocks - tracked.local) * self._how.tokens_per_block, True

    def _polled(self, fetch: Fetch, wait_s: float) -> bool:
        """Whether the fetch has ended; one whose node is gone has."""
        if fetch.ready_since is not None:
            return True
        began = time.monotonic()
        try:
            return fetch.poll(wait_s)
        except Exception as error:
            logger.warning("FlexKV: a fetch was lost: %s", error)
            fetch.release()
            return True
        finally:
            self._patience_s = max(0.0, self._patience_s - (time.monotonic() - began))

    def _checksums(self, fetch: Fetch, first: int, count: int) -> list[list[int]]:
        """Checksums of what is to be loaded. Without a node there are none, and the load fails at
        the worker, which reports it."""
        try:
            return fetch.checksums(first, count)
        except Exception as error:
            logger.warning("FlexKV: a load is lost: %s", error)
            return [[] for _ in range(self._how.workers)]

    def _missed(self, tracked: Tracked, now: float, why: str | None = None) -> None:
        tracked.asked_at = now
        tracked.release()
        if why is not None:
            self._counters.add(why)

    def _failed(self, invalid: set[int]) -> None:
        """Loads into these blocks failed; their requests compute instead."""
        for tracked in self._tracked.values():
            if tracked.loading and not invalid.isdisjoint(tracked.load_blocks):
                tracked.may_load = False
                tracked.kept = 0
                self._counters.add("failed_loads")

    def _loaded(self, name: str) -> None:
        fetch = self._leaving.pop(name, None)
        tracked = self._tracked.get(name)
        if tracked is not None and tracked.loading:
            fetch, tracked.fetch, tracked.loading = tracked.fetch, None, False
        if fetch is not None:
            fetch.release()

    def _keep_for_load(self, name: str) -> bool:
        """Whether the blocks of an aborted load must be kept for it by us."""
        if self._how.keeps_aborted:
            return False
        self._releases.append(name)
        return True

    # Saving

    def _preempted(self, output: Any) -> list[str]:
        """Requests that lost their blocks in this step while workers may read them."""
        flush = []
        named = getattr(output, "preempted_req_ids", None) or ()
        for name, tracked in self._tracked.items():
            status = getattr(tracked.request, "status", None)
            if name not in named and getattr(status, "name", "") != "PREEMPTED":
                continue
            if tracked.block_ids and not tracked.loading:
                tracked.block_ids = []
                if tracked.open_saves:
                    flush.append(name)
        return flush

    def _follow_blocks(self, output: Any) -> dict[str, int]:
        """Notes which blocks the scheduled requests have; tokens each had computed before."""
        before: dict[str, int] = {}
        for new in output.scheduled_new_reqs:
            before[new.req_id] = new.num_computed_tokens
            tracked = self._tracked.get(new.req_id)
            if tracked is not None:
                tracked.block_ids = list(new.block_ids[0])
        cached = output.scheduled_cached_reqs
        resumed = getattr(cached, "resumed_req_ids", None)
        for index, name in enumerate(cached.req_ids):
            before[name] = cached.num_computed_tokens[index]
            tracked = self._tracked.get(name)
            more = cached.new_block_ids[index]
            if tracked is None or more is None:
                continue
            again = cached.resumed_from_preemption[index] if resumed is None else name in resumed
            tracked.block_ids = [*(() if again else tracked.block_ids), *more[0]]
        return before

    def _save_full_blocks(self, tracked: Tracked, computed: int, saves: list[Save]) -> None:
        """Adds a save of the blocks that are full once `computed` tokens are computed."""
        full = min(computed // self._how.tokens_per_block, len(tracked.block_ids))
        first = tracked.kept
        if not self._how.saves or tracked.keys is None or full <= first:
            return
        block_ids = tracked.block_ids[first:full]
        if 0 in block_ids:  # vLLM's null block stands for one that is not there
            return
        request = tracked.request
        keys = tracked.keys.leading(full, request.all_token_ids)
        job = next(self._jobs)
        saves.append(Save(job, request.request_id, keys, first, block_ids))
        offer = self._announcer.describe(request, first, full, keys)
        self._open[job] = (request.request_id, offer, [0, 0])
        tracked.open_saves.add(job)
        tracked.kept = full
        tracked.saved += full - first

    def _ended(self, job: int, ended: int, well: int) -> None:
        """Workers ended a save; once all have, it is known whether the blocks are stored."""
        known = self._open.get(job)
        if known is None:
            return
        name, offer, counts = known
        counts[0] += ended
        counts[1] += well
        if counts[0] < self._how.workers:
            return
        del self._open[job]
        if counts[1] == counts[0]:
            self._note_removals()  # so that what went before comes before
            self._announcer.stored(offer)
        tracked = self._tracked.get(name)
        if tracked is not None:
            tracked.open_saves.discard(job)

    def _note_removals(self) -> None:
        """Takes note of what the node no longer holds; with a node goes all it held."""
        if not self._announcer.enabled:
            return
        attachment = self._link.get()
        if attachment is not self._watched:
            self._announcer.cleared()
            self._watched = attachment
        if attachment is None:
            return
        try:
            keys, lost = attachment.removed()
        except Exception as error:
            logger.debug("FlexKV: the node tells nothing of removals: %s", error)
            return
        self._announcer.missing(keys)
        self._counters.add("lost_removals", lost)

    def _sent(self, name: str) -> None:
        """All saves of a finished request have ended; some workers can tell no more than that."""
        well = 0 if self._how.worker_reports else self._how.workers
        for job in [job for job, known in self._open.items() if known[0] == name]:
            self._ended(job, self._how.workers, well)
        self._loaded(name)

    def _told(self, tracked: Tracked) -> dict[str, Any] | None:
        """For the response: what was loaded and saved."""
        if tracked.keys is None:
            return None
        size = self._how.tokens_per_block
        return {
            "flexkv_hit_tokens_local": tracked.hits.get("local", 0),
            "flexkv_hit_tokens_remote": tracked.hits.get("remote", 0),
            "flexkv_saved_tokens": tracked.saved * size,
        }

"""The scheduler side: what it promises, when it saves, what it holds. No vLLM is needed."""

import pytest
from doubles import BLOCK, FakeAttachment, FakeChain, FakeLink, Request, Step, told

from flexkv.integration.vllm import scheduler as module
from flexkv.integration.vllm.events import Announcer
from flexkv.integration.vllm.plan import Report
from flexkv.integration.vllm.requests import Keys
from flexkv.integration.vllm.scheduler import Behaviour, SchedulerSide


class World:
    """A scheduler side on a node in memory."""

    def __init__(self, shards: int = 1, **how: object) -> None:
        self.node = FakeAttachment()
        self.link = FakeLink(self.node)
        self.shards = shards
        behaviour = Behaviour(BLOCK, fetch_deadline_s=5.0, workers=shards, **how)
        self.side = SchedulerSide(self.link, self.keys_of, behaviour, Announcer(False, BLOCK))

    def keys_of(self, request: Request) -> Keys | None:
        if getattr(request, "private", False):
            return None
        return Keys([FakeChain(str(shard)) for shard in range(self.shards)], BLOCK)

    def has(self, tokens: list[int], blocks: int, shards: range | None = None) -> None:
        """The node has the first `blocks` blocks of `tokens`, for these shards."""
        for shard in shards or range(self.shards):
            keys = FakeChain(str(shard)).extend(tokens[: blocks * BLOCK])
            self.node.present |= {keys[at : at + 16] for at in range(0, len(keys), 16)}

    def promised(self, request: Request, blocks: list[int], local: int = 0) -> int:
        """Lets vLLM take what is promised."""
        tokens, later = self.side.matched(request, local * BLOCK)
        assert tokens
        assert later
        self.side.allocated(request, blocks, tokens)
        return tokens


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ASK_AGAIN_S", 0.0)


PROMPT = list(range(100, 118))
"""Four full blocks and two tokens."""


def test_a_prompt_that_nobody_has_is_a_miss() -> None:
    world = World()
    assert world.side.matched(Request("a", PROMPT), 0) == (0, False)
    assert not world.node.held


def test_what_is_verified_is_promised_and_no_more() -> None:
    world = World()
    world.has(PROMPT, 4)
    world.node.arrives = 3
    assert world.side.matched(Request("a", PROMPT), 0) == (3 * BLOCK, True)


def test_a_token_is_left_to_compute() -> None:
    world = World()
    whole = PROMPT[: 4 * BLOCK]
    world.has(whole, 4)
    assert world.side.matched(Request("a", whole), 0) == (3 * BLOCK, True)


def test_blocks_that_the_engine_has_are_not_promised_again() -> None:
    world = World()
    world.has(PROMPT, 4)
    request = Request("a", PROMPT)
    assert world.side.matched(request, 2 * BLOCK) == (2 * BLOCK, True)
    world.side.allocated(request, [7, 8, 9, 10, 11], 2 * BLOCK)
    (load,) = world.side.plan(Step().output()).loads
    assert load.block_ids == [9, 10]
    assert load.offsets == [[2 * 4096, 3 * 4096]]
    assert load.checksums == [[2, 3]]


def test_vllm_asks_again_while_blocks_are_brought() -> None:
    world = World()
    world.has(PROMPT, 4)
    world.node.pending = 3
    request = Request("a", PROMPT)
    answers = [world.side.matched(request, 0) for _ in range(3)]
    assert answers == [(None, False), (None, False), (4 * BLOCK, True)]
    assert world.node.matches == 1


def test_lookups_hold_up_a_step_once_however_many_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.has(PROMPT, 4)
    world.node.pending = 1000
    monkeypatch.setattr(module.time, "monotonic", lambda: 100 + world.node.waited_s)
    prompts = [Request(f"r{number}", PROMPT) for number in range(5)]
    assert [world.side.matched(each, 0) for each in prompts] == [(None, False)] * 5
    once = world.node.waited_s
    assert once > 0
    world.side.plan(Step().output())
    assert [world.side.matched(each, 0) for each in prompts] == [(None, False)] * 5
    assert world.node.waited_s == pytest.approx(2 * once)


def test_while_requests_compute_nobody_waits_for_other_nodes() -> None:
    world = World()
    world.has(PROMPT, 4)
    world.node.pending, world.node.remote = 1, 2
    world.side.plan(Step(scheduled={"other": 1}).output())
    request = Request("a", PROMPT)
    assert world.side.matched(request, 0) == (None, False)
    assert world.node.waited_s == 0
    assert world.side.matched(request, 0) == (4 * BLOCK, True)


def test_a_version_that_cannot_ask_again_waits() -> None:
    world = World(answers_later=False)
    world.has(PROMPT, 4)
    world.node.pending = 1
    assert world.side.matched(Request("a", PROMPT), 0) == (4 * BLOCK, True)


def test_a_fetch_that_brings_nothing_in_time_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.has(PROMPT, 4)
    world.node.pending = 1000
    request = Request("a", PROMPT)
    assert world.side.matched(request, 0) == (None, False)
    now = module.time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 7)
    assert world.side.matched(request, 0) == (0, False)
    assert not world.node.held
    assert world.side.stats().data["fetch_timeouts"] == 1


def test_a_prefix_counts_as_far_as_all_shards_have_it() -> None:
    world = World(shards=2)
    world.has(PROMPT, 4, range(1))
    world.has(PROMPT, 2, range(1, 2))
    request = Request("a", PROMPT)
    assert world.promised(request, [1, 2, 3, 4, 5]) == 2 * BLOCK
    (load,) = world.side.plan(Step().output()).loads
    assert [len(offsets) for offsets in load.offsets] == [2, 2]


def test_tickets_are_held_until_the_copy_is_done() -> None:
    world = World()
    world.has(PROMPT, 4)
    world.promised(Request("a", PROMPT), [1, 2, 3, 4, 5])
    assert len(world.node.held) == 1
    world.side.received(told(received={"a"}))
    assert not world.node.held


def test_a_promise_that_is_not_taken_is_let_go() -> None:
    world = World()
    world.has(PROMPT, 4)
    request = Request("a", PROMPT)
    world.side.matched(request, 0)
    world.side.allocated(request, [], 0)
    assert not world.node.held


def test_a_promise_that_waits_too_long_is_looked_up_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.has(PROMPT, 4)
    request = Request("a", PROMPT)
    world.side.matched(request, 0)
    now = module.time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 11)
    assert world.side.matched(request, 0) == (4 * BLOCK, True)
    assert world.node.matches == 2
    assert len(world.node.held) == 1


def test_blocks_are_saved_as_chunks_of_the_prompt_fill_them() -> None:
    world = World()
    request = Request("a", PROMPT)
    world.side.matched(request, 0)
    first = world.side.plan(Step(new=[("a", [1, 2], 0)], scheduled={"a": 6}).output())
    assert [(save.first, save.block_ids) for save in first.saves] == [(0, [1])]
    second = world.side.plan(
        Step(cached=[("a", [3, 4, 5], 6, False)], scheduled={"a": 12}).output()
    )
    assert [(save.first, save.block_ids) for save in second.saves] == [(1, [2, 3, 4])]
    assert len(second.saves[0].keys[0]) == 4 * 16


def test_tokens_that_are_not_known_yet_are_not_saved() -> None:
    world = World()
    request = Request("a", PROMPT[: 2 * BLOCK])
    world.side.matched(request, 0)
    drafted = Step(new=[("a", [1, 2, 3], 0)], scheduled={"a": 3 * BLOCK})
    assert [save.block_ids for save in world.side.plan(drafted.output()).saves] == [[1, 2]]


def test_what_was_loaded_is_not_saved_again() -> None:
    world = World()
    world.has(PROMPT, 2)
    request = Request("a", PROMPT)
    world.promised(request, [1, 2, 3, 4, 5])
    world.side.plan(Step().output())
    world.side.received(told(received={"a"}))
    plan = world.side.plan(
        Step(new=[("a", [1, 2, 3, 4, 5], 2 * BLOCK)], scheduled={"a": 10}).output()
    )
    assert [(save.first, save.block_ids) for save in plan.saves] == [(2, [3, 4])]


def test_blocks_that_the_node_lost_are_saved_from_the_engine() -> None:
    world = World()
    world.has(PROMPT, 1)
    request = Request("a", PROMPT)
    assert world.side.matched(request, 3 * BLOCK) == (0, False)
    plan = world.side.plan(
        Step(new=[("a", [1, 2, 3, 4, 5], 3 * BLOCK)], scheduled={"a": 6}).output()
    )
    assert [(save.first, save.block_ids) for save in plan.saves] == [(1, [2, 3, 4])]


def saved(world: World, request: Request) -> int:
    """Lets the request compute; the job of its save."""
    world.side.matched(request, 0)
    step = Step(new=[(request.request_id, [1, 2, 3, 4, 5], 0)], scheduled={request.request_id: 18})
    (save,) = world.side.plan(step.output()).saves
    request.num_computed_tokens = 18
    return save.job


def test_blocks_are_kept_until_their_save_has_ended() -> None:
    world = World()
    request = Request("a", PROMPT)
    saved(world, request)
    keep, answer = world.side.finished(request)
    assert keep
    assert answer["flexkv_saved_tokens"] == 4 * BLOCK
    assert world.side.plan(Step().output()).release == ["a"]


def test_blocks_whose_save_has_ended_are_free_at_once() -> None:
    world = World(shards=2)
    request = Request("a", PROMPT)
    job = saved(world, request)
    world.side.reported(Report({job: (1, 1)}))
    world.side.reported(Report({job: (1, 0)}))
    assert world.side.finished(request)[0] is False


def test_the_last_full_block_is_saved_when_the_request_ends() -> None:
    world = World()
    request = Request("a", PROMPT)
    saved(world, request)
    request.all_token_ids += [1, 2, 3]
    request.num_computed_tokens = 20
    world.side._tracked["a"].block_ids.append(6)
    assert world.side.finished(request)[0]
    plan = world.side.plan(Step().output())
    assert [(save.first, save.block_ids) for save in plan.saves] == [(4, [5])]
    assert plan.release == ["a"]


def test_a_preempted_request_ends_its_saves_first_and_looks_again() -> None:
    world = World()
    request = Request("a", PROMPT)
    saved(world, request)
    request.status.name = "PREEMPTED"
    assert world.side.plan(Step().output()).flush == ["a"]
    assert world.side.plan(Step().output()).flush == []
    world.has(PROMPT, 4)
    assert world.side.matched(request, 0) == (4 * BLOCK, True)


def test_an_aborted_fetch_holds_nothing() -> None:
    world = World()
    world.has(PROMPT, 4)
    world.node.pending = 100
    request = Request("a", PROMPT)
    world.side.matched(request, 0)
    assert world.side.finished(request)[0] is False
    assert not world.node.held


@pytest.mark.parametrize("vllm_keeps", [True, False])
def test_an_aborted_load_holds_its_tickets_until_the_copy_is_done(vllm_keeps: bool) -> None:
    world = World(keeps_aborted=vllm_keeps)
    world.has(PROMPT, 4)
    request = Request("a", PROMPT)
    world.promised(request, [1, 2, 3, 4, 5])
    assert world.side.finished(request)[0] is not vllm_keeps
    assert world.side.plan(Step().output()).release == ([] if vllm_keeps else ["a"])
    assert world.node.held
    world.side.received(told(received={"a"}) if vllm_keeps else told(sent={"a"}))
    assert not world.node.held


def test_a_load_that_failed_is_not_tried_again() -> None:
    world = World()
    world.has(PROMPT, 4)
    request = Request("a", PROMPT)
    world.promised(request, [1, 2, 3, 4, 5])
    world.side.received(told(received={"a"}, invalid={2}))
    assert world.side.matched(request, 0) == (0, False)
    assert world.side.stats().data["failed_loads"] == 1
    assert not world.node.held


def test_without_a_node_everything_is_a_miss() -> None:
    world = World()
    world.has(PROMPT, 4)
    world.node.gone = True
    assert world.side.matched(Request("a", PROMPT), 0) == (0, False)
    assert world.side.stats().data["unavailable"] == 1


def test_a_node_that_goes_during_a_fetch_is_a_miss() -> None:
    world = World()
    world.has(PROMPT, 4)
    world.node.pending = 100
    request = Request("a", PROMPT)
    assert world.side.matched(request, 0) == (None, False)
    world.node.gone = True
    assert world.side.matched(request, 0) == (0, False)


def test_a_node_that_goes_before_the_load_starts_leaves_a_load_that_fails() -> None:
    world = World()
    world.has(PROMPT, 4)
    request = Request("a", PROMPT)
    tokens, _ = world.side.matched(request, 0)
    world.node.gone = True
    world.side.allocated(request, [1, 2, 3, 4, 5], tokens)
    (load,) = world.side.plan(Step().output()).loads
    assert load.checksums == [[]]


@pytest.mark.parametrize(
    "more",
    [{"private": True}, {"skip_reading_prefix_cache": True}, {"pooling_params": object()}],
)
def test_requests_that_must_not_load_do_not(more: dict[str, object]) -> None:
    world = World()
    world.has(PROMPT, 4)
    assert world.side.matched(Request("a", PROMPT, **more), 0) == (0, False)
    assert world.node.matches == 0


def test_a_consumer_saves_nothing_and_a_producer_loads_nothing() -> None:
    world = World(saves=False)
    world.side.matched(Request("a", PROMPT), 0)
    step = Step(new=[("a", [1, 2, 3, 4, 5], 0)], scheduled={"a": 18})
    assert not world.side.plan(step.output()).saves
    world = World(loads=False)
    world.has(PROMPT, 4)
    assert world.side.matched(Request("a", PROMPT), 0) == (0, False)


def test_a_reset_forgets_what_runs() -> None:
    world = World()
    world.has(PROMPT, 4)
    request = Request("a", PROMPT)
    world.side.matched(request, 0)
    assert world.side.reset()
    assert not world.node.held
    assert world.side.matched(request, 0) == (0, False)
    step = Step(new=[("a", [1, 2, 3, 4, 5], 0)], scheduled={"a": 18})
    assert not world.side.plan(step.output()).saves


def test_a_reset_says_if_something_old_is_being_loaded() -> None:
    world = World()
    world.has(PROMPT, 4)
    world.promised(Request("a", PROMPT), [1, 2, 3, 4, 5])
    assert not world.side.reset()
    world.side.received(told(received={"a"}))
    assert world.side.reset()
    assert not world.node.held


def test_hits_are_counted_by_where_they_came_from() -> None:
    world = World()
    world.has(PROMPT, 4)
    world.node.remote = 3
    request = Request("a", PROMPT)
    world.promised(request, [1, 2, 3, 4, 5])
    assert world.side.hits(request) == {"local": BLOCK, "remote": 3 * BLOCK}
    counted = world.side.stats().data
    assert (counted["hit_tokens_local"], counted["hit_tokens_remote"]) == (BLOCK, 3 * BLOCK)
    assert world.side.stats() is None


def test_nothing_is_held_after_closing() -> None:
    world = World()
    world.has(PROMPT, 4)
    world.side.matched(Request("a", PROMPT), 0)
    world.promised(Request("b", PROMPT), [1, 2, 3, 4, 5])
    world.side.close()
    assert not world.node.held


def test_the_node_is_told_how_fast_the_engine_computes() -> None:
    for told, expected in [(1000.0, BLOCK / 1000.0), (None, None)]:
        world = World(recompute_tokens_per_second=told)
        world.has(PROMPT, 4)
        world.side.matched(Request("a", PROMPT), 0)
        assert world.node.told_recompute_s == [expected]

"""How fast the engine computes prompts, and that the node is told. No vLLM is needed."""

from typing import Any

import pytest
from doubles import BLOCK, FakeAttachment, FakeChain

from flexkv.integration.vllm.fetch import Fetch
from flexkv.integration.vllm.metrics import Counters
from flexkv.integration.vllm.prefill import PrefillRate


def test_steps_full_of_prompts_are_measured() -> None:
    rate = PrefillRate()
    now = 100.0
    for _ in range(5):
        rate.scheduled(2000, now)
        now += 0.5
    assert rate.tokens_per_second() is None
    rate.scheduled(2000, now)
    assert rate.tokens_per_second() == pytest.approx(4000)


def test_idle_times_small_steps_and_steps_scheduled_ahead_do_not_count() -> None:
    rate = PrefillRate()
    now = 0.0
    for _ in range(4):
        rate.scheduled(1000, now)
        rate.scheduled(1000, now)
        for _ in range(3):
            now += 0.25
            rate.scheduled(1000, now)
        now += 0.01
        rate.scheduled(7, now)
        now += 60.0
    assert rate.tokens_per_second() == pytest.approx(4000)


def test_what_the_operator_knows_is_not_measured() -> None:
    rate = PrefillRate(told=500.0)
    for step in range(20):
        rate.scheduled(2000, float(step))
    assert rate.tokens_per_second() == 500.0


@pytest.mark.parametrize("recompute_s", [None, 0.004])
def test_the_node_is_told_what_a_block_costs(recompute_s: Any) -> None:
    node = FakeAttachment()
    keys = FakeChain("0").extend(list(range(2 * BLOCK)))
    node.present = {keys[:16], keys[16:32]}
    Fetch.begin(node, [keys], 0, 5.0, recompute_s)
    assert node.told_recompute_s == [recompute_s]


def test_of_a_rate_the_last_one_is_shown_and_of_counts_the_sum() -> None:
    counters = Counters()
    together = None
    for rate in (100.0, 300.0, 200.0):
        counters.add("lookups")
        counters.tell("recompute_tokens_per_second", rate)
        stats = counters.take()
        assert stats is not None
        together = stats if together is None else together.aggregate(stats)
    assert together is not None
    assert together.reduce() == {"lookups": 3, "recompute_tokens_per_second": 200.0}

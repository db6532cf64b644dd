"""The attachment of an engine to its node: made again when the node went, and not too often."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from flexkv import link

logger = logging.getLogger("vllm.flexkv")


class Attachment:
    """What is made; it stands until a test says that its node is gone."""

    gone = False


class Attempts:
    """Makes attachments, or fails while `away`; keeps none of them."""

    def __init__(self) -> None:
        self.count = 0
        self.away = False

    def __call__(self) -> Attachment:
        self.count += 1
        if self.away:
            raise RuntimeError("nobody listens")
        return Attachment()


def until(question: Callable[[], object]) -> object:
    deadline = time.monotonic() + 20
    while not (answer := question()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return answer


@pytest.fixture
def attempts() -> Attempts:
    return Attempts()


@pytest.fixture
def linked(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> Iterator[link.Link]:
    monkeypatch.setattr(link, "_FIRST_PAUSE_S", 0.01)
    linked = link.Link(attempts, logger, "a test")
    yield linked
    linked.close()
    until(lambda: not linked._thread.is_alive())


def test_a_node_that_went_is_attached_to_again(linked: link.Link, attempts: Attempts) -> None:
    first = linked.wait(20)
    assert first is not None and linked.get() is first
    attempts.away = True
    first.gone = True
    assert linked.get() is None, "an engine goes on without a node"
    until(lambda: attempts.count >= 3)
    assert linked.get() is None
    attempts.away = False
    second = until(linked.get)
    assert second is not first and attempts.count >= 4


def test_nothing_keeps_what_was_attached_to_a_node_that_went(linked: link.Link) -> None:
    first = linked.wait(20)
    kept = weakref.ref(first)
    first.gone = True
    assert linked.get() is None
    del first
    until(lambda: kept() is None)  # its threads and its memory are given back


def test_a_node_that_goes_again_and_again_is_left_alone_longer_and_longer(
    linked: link.Link, attempts: Attempts
) -> None:
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        attachment = linked.get()
        if attachment is not None:
            attachment.gone = True
    # The pauses are 0.01, 0.02, 0.04 s and so on: the sixth ends after 0.63 s.
    assert 2 <= attempts.count <= 6


def test_close_ends_the_attempts(linked: link.Link, attempts: Attempts) -> None:
    attempts.away = True
    attachment = linked.wait(20)
    assert attachment is not None
    attachment.gone = True
    linked.get()
    linked.close()
    until(lambda: not linked._thread.is_alive())
    assert linked.get() is None

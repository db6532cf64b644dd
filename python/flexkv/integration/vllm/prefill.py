"""How fast the engine computes prompts, from the steps that vLLM schedules.

Only steps full of prompt tokens that follow one another count: between them the engine does nothing
else. Knows no requests.
"""

from __future__ import annotations

_FULL_STEP = 512
"""Tokens of a step that computes little but prompts."""
_MEMORY = 0.9
"""What earlier steps count for after each further one."""
_LEAST_STEPS = 4
"""A rate from fewer steps is none."""


class PrefillRate:
    """Tokens a second, once enough steps have been seen."""

    def __init__(self, told: float | None = None) -> None:
        """`told` is what the operator knows; then nothing is measured."""
        self._told = told
        self._tokens = 0.0
        self._seconds = 0.0
        self._steps = 0
        self._run = 0
        self._last = 0.0
        self._pending = 0

    def scheduled(self, tokens: int, now: float) -> None:
        """A step of so many tokens is about to run, after the one before it or beside its end."""
        if tokens < _FULL_STEP:
            self._run = 0
            return
        # The first two steps of a run may be scheduled at once, before either has run.
        if self._run >= 2:
            self._tokens = self._tokens * _MEMORY + self._pending
            self._seconds = self._seconds * _MEMORY + now - self._last
            self._steps += 1
        self._run += 1
        self._last = now
        self._pending = tokens

    def tokens_per_second(self) -> float | None:
        """The rate, or None while it is not known."""
        if self._told is not None:
            return self._told
        if self._steps < _LEAST_STEPS or self._seconds <= 0.0:
            return None
        return self._tokens / self._seconds

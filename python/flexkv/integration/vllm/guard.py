"""Keeps errors of the connector out of vLLM, which would end the engine for them.

Knows nothing of the methods it guards but what each answers when there is no cache.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

logger = logging.getLogger("vllm.flexkv")

_Method = TypeVar("_Method", bound=Callable[..., Any])

_LOG_EVERY_S = 10.0
_last_logged: dict[str, float] = {}


def guarded(otherwise: Callable[[], Any]) -> Callable[[_Method], _Method]:
    """Turns any error of a method into `otherwise()` and a line in the log."""

    def wrap(method: _Method) -> _Method:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except Exception:
                _report(method.__qualname__)
                return otherwise()

        return call  # type: ignore[return-value]

    return wrap


def _report(name: str) -> None:
    """Logs the error being handled, seldom enough not to fill the disk."""
    now = time.monotonic()
    if now - _last_logged.get(name, -_LOG_EVERY_S) >= _LOG_EVERY_S:
        _last_logged[name] = now
        logger.exception("FlexKV: %s failed; the engine goes on without the cache here", name)

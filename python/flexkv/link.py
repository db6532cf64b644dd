"""The attachment of one engine process to its node, made in the background and made again.

Whoever asks gets an attachment that stands, or none: without a node everything is a miss. Knows
nothing of what is asked through it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


class Link:
    """Keeps an attachment for as long as there is a node."""

    def __init__(self, attach: Callable[[], Any], logger: logging.Logger, what: str) -> None:
        """`attach` gives an attachment or raises; it may take its time. `what` is for the log."""
        self._attach = attach
        self._logger = logger
        self._what = what
        self._attachment: Any = None
        self._closed = threading.Event()
        self._wanted = threading.Event()
        self._made = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flexkv-link", daemon=True)
        self._thread.start()

    def get(self) -> Any | None:
        """The attachment, if it stands."""
        attachment = self._attachment
        if attachment is None:
            return None
        if attachment.gone:
            self._attachment = None
            self._made.clear()
            self._wanted.set()
            self._logger.warning("FlexKV: the node is gone; %s goes on without it", self._what)
            return None
        return attachment

    def wait(self, timeout_s: float) -> Any | None:
        """The attachment, once it stands, or none after `timeout_s`."""
        self._made.wait(timeout_s)
        return self.get()

    def close(self) -> None:
        """Ends the attempts; the attachment ends with its last user."""
        self._closed.set()
        self._wanted.set()
        self._attachment = None

    def _run(self) -> None:
        pause = 0.0
        while not self._closed.wait(pause):
            try:
                attachment = self._attach()
            except Exception as error:  # whatever it is, an engine goes on without a cache
                self._logger.warning("FlexKV: %s has no node now: %s", self._what, error)
                pause = _longer(pause)
                continue
            made_at = time.monotonic()
            self._wanted.clear()
            if self._closed.is_set():
                return
            self._attachment = attachment
            self._made.set()
            self._logger.info("FlexKV: %s is attached to its node", self._what)
            del attachment
            self._wanted.wait()
            stood = time.monotonic() - made_at >= _LONGEST_PAUSE_S
            pause = 0.0 if stood else _longer(pause)


def _longer(pause: float) -> float:
    """The pause after one that was of no use; also a node that dies again and again is left alone
    for a while, as every attempt may start it."""
    return min(max(2 * pause, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)

"""Threads that a call in numba begins itself, and that come late or not at all."""

from __future__ import annotations

import _thread
import time

from tritongru.backends.numba import threads


def let_threads_be_late(monkeypatch, seconds: float | None) -> None:
    """Let calls use threads of their own, which begin so many seconds late; None for never."""
    monkeypatch.setattr(threads, "find_team", lambda: None)
    start = _thread.start_new_thread

    def start_late(work, arguments) -> None:
        if seconds is not None:
            start(lambda: (time.sleep(seconds), work(*arguments)), ())

    monkeypatch.setattr(threads._thread, "start_new_thread", start_late)

"""A process that was started to do one thing for another ends with it, whatever ended the other."""

from __future__ import annotations

import os
import sys
import threading


def end_with_parent() -> None:
    """From now on this process ends as soon as its standard input does; the parent keeps the other end open and writes nothing.

    Ends without cleaning up: files are written line by line, workers have lifelines of their own.
    """
    descriptor = os.dup(sys.stdin.fileno())
    threading.Thread(target=_wait, args=(descriptor,), name="lifeline", daemon=True).start()


def _wait(descriptor: int) -> None:
    try:
        while os.read(descriptor, 4096):
            pass
    except OSError:
        pass
    os._exit(1)

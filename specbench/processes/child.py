"""One way to start a child process, to give it time and to stop it; and the child's side: it ends with its parent.

A child that was started to do one thing for another holds a lifeline, a descriptor whose other end the parent keeps open: when
that end closes, whatever ended the parent, the child ends too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import IO, Any

KILL_SECONDS = 5.0  # how long the system may take to end a killed process
_PR_SET_PDEATHSIG = 1
INTERRUPT_SECONDS, WRITE_SECONDS = 5.0, 20.0  # after Ctrl-C: until a child is told too, and until it is killed


# ---------------------------------------------------------------------------------------------------- the child's side
def end_with_parent(lifeline: int | None = None, grace_seconds: float = 0.0) -> None:
    """From now on this process ends as soon as `lifeline` (None: standard input) does; what comes over it is not looked at.

    Ends without cleaning up: files are written line by line, workers have lifelines of their own. grace_seconds: what is left
    to end another way. Where the system can (Linux) it also kills this process with the thread that started it, which ends one
    that is stopped and sees no lifeline: start children from a thread that outlives them.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    descriptor = os.dup(sys.stdin.fileno() if lifeline is None else lifeline)

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(descriptor, 4096):
                pass
        time.sleep(grace_seconds)
        os._exit(1)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


class Lifeline:
    """The child's end of a lifeline, which is held from the moment that the child unpickles it.

    First among a spawned process's arguments it is held before the others are unpickled, and with that before the modules that
    they need are imported: seconds, in which the parent can be killed and the child stopped.
    """

    def __init__(self, end: Connection, grace_seconds: float):
        self.end, self.grace_seconds = end, grace_seconds

    def __reduce__(self) -> tuple[Any, ...]:
        return _held, (self.end, self.grace_seconds)


def _held(end: Connection, grace_seconds: float) -> Lifeline:
    end_with_parent(end.fileno(), grace_seconds)
    return Lifeline(end, grace_seconds)


# ---------------------------------------------------------------------------------------------------- the parent's side
def run_module(
    arguments: Sequence[str],
    order: str = "",
    environment: Mapping[str, str] | None = None,
    output: IO[str] | None = None,
    timeout_seconds: float | None = None,
    inherited: Sequence[int] = (),
) -> int | None:
    """`python -m <arguments>` to its end, or until it is stopped: its exit status (see `death`), None after `timeout_seconds`.

    Its standard input begins with `order` and is its lifeline. With an `output`, which takes all that it prints, it has a
    process group of its own, which ends with it; without, it has the terminal's: Ctrl-C reaches it there, Terminated is passed
    on, and it is given time to write down that it was interrupted. inherited: descriptors that it has under the same numbers.
    """
    apart = output is not None
    child = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        text=True,
        env={**os.environ, **(environment or {})},
        start_new_session=apart,
        pass_fds=inherited,
    )
    assert child.stdin is not None

    def ended(seconds: float | None) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
        return child.returncode is not None

    try:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(order)
            child.stdin.flush()  # left open
        return child.returncode if ended(timeout_seconds) else None
    except BaseException as error:
        if not apart:
            known = INTERRUPT_SECONDS if type(error) is KeyboardInterrupt else 0.0
            stop(ended, (known, child.terminate), (WRITE_SECONDS, child.kill))
        raise
    finally:
        if apart:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)  # what it has started itself too
            child.wait()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()


def stop(ended: Callable[[float], bool], *steps: tuple[float, Callable[[], None]]) -> None:
    """Each step: wait for the child's end so many seconds, then do something about it. ended: waits, and whether it has."""
    for seconds, act in steps:
        if ended(seconds):
            return
        act()
    ended(KILL_SECONDS)


def death(status: int) -> str:
    """How a process ended, from its exit status; a negative one is the signal that ended it."""
    if status >= 0:
        return f"died with exit status {status}"
    hint = "; the system may have run out of memory" if -status == signal.SIGKILL else ""
    return f"died of {signal.Signals(-status).name}{hint}"

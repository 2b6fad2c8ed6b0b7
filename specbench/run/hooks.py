"""A method is somebody's code: what one of its hooks raises is said with the hook's name, and costs no finished sample.

`open`, and what is asked before the first sample, ends the run (MethodError); so does a hook that does not come back
(`Watchdog`). During a sample it is a failure of that sample (`arms`). After the passes it is a warning beside what could not be
had: the samples are measured by then.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeVar

from specbench.config.options import ConfigError
from specbench.method import Method
from specbench.processes.program import WorkerError

RAISED = (Exception, SystemExit)  # a hook that calls sys.exit() must not end the run, least of all with status 0
SHOWN = 4  # calls of a hook that are named
Value = TypeVar("Value")

# Who calls hooks: the hook is the first frame below them. Wrappers (torch's inference mode, say) are passed over.
_CALLERS = ("specbench.run", "specbench.method", "specbench.parts.schedules", "specbench.processes")
_WRAPPERS = ("torch", "contextlib", "functools")


class MethodError(RuntimeError):
    """A method's hook raised, or hangs, where no run can go on."""


def name_of(method: Method) -> str:
    return f"{type(method).__module__}.{type(method).__qualname__}"


def told(error: BaseException, method: Method) -> str:
    """`KeyError: 'x' (in MyDraft.propose > lookup of my_package.MyMethod; my_package.py, line 12)`, one line."""
    where = _hook(traceback.walk_tb(error.__traceback__), method)
    return f"{' '.join(f'{type(error).__name__}: {error}'.split())} ({where})"


def _hook(frames: Iterable[tuple[FrameType, int]], method: Method) -> str:
    """The hook of a method that a stack is in, outermost frame first, and what it has come to in there."""
    calls: list[CodeType] = []
    place = ""
    below = False  # a caller of hooks was passed
    for frame, line in frames:
        module = str(frame.f_globals.get("__name__", ""))
        place = f"; {Path(frame.f_code.co_filename).name}, line {line}"
        if _within(module, _CALLERS):
            calls, below = [], True
        elif below and not _within(module, _WRAPPERS):
            calls.append(frame.f_code)
    names = [code.co_qualname.replace("<locals>.", "") for code in calls]
    shown = names if len(names) <= SHOWN else [names[0], "...", *names[1 - SHOWN :]]
    return f"in {' > '.join(shown) or 'the schedule'} of {name_of(method)}{place}"


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def asked(what: str, arm: str, method: Method, hook: Callable[[], Value]) -> Value:
    """A hook's answer. Raises MethodError naming it for whatever it raises but a wrong option and a lost worker."""
    try:
        return hook()
    except (ConfigError, WorkerError, MethodError):
        raise
    except RAISED as error:
        raise MethodError(f"{what} of the {arm} arm failed: {told(error, method)}") from error


def spared(what: str, method: Method, hook: Callable[[], Any], otherwise: Any, warnings: list[str]) -> Any:
    """A hook's answer; `otherwise`, and a warning that says why, if it has none."""
    try:
        return hook()
    except RAISED as error:
        warnings.append(f"{what}: {told(error, method)}")
        return otherwise


class _Hangs(BaseException):
    """What the alarm raises in a hook: nothing that a plugin takes for an error of its own."""


class Watchdog:
    """Ends a hook that does not come back within `seconds` of the last sign of life, wherever Python code runs or waits.

    It is an alarm of the operating system: no thread, and nothing inside a loop but `alive`. Native code that never returns
    is beyond it, and so is a run that is not the main thread's.
    """

    def __init__(self, seconds: float):
        self.seconds, self._watching = seconds, False

    def alive(self) -> None:
        """A sign of life: a round is over."""
        if self._watching:
            signal.setitimer(signal.ITIMER_REAL, self.seconds, self.seconds)

    def watched(self, method: Method, hook: Callable[[], Value]) -> Value:
        """A hook's answer."""
        with self.over(method):
            return hook()

    @contextlib.contextmanager
    def over(self, method: Method) -> Iterator[None]:
        """Watch what runs inside, unless there is a worker: its schedule knows of silence. Raises MethodError for a hook that
        hangs."""
        own = threading.current_thread() is threading.main_thread()
        if not own or not math.isfinite(self.seconds) or method.pids():
            yield
            return

        def hangs(number: int, frame: FrameType | None) -> None:
            where = _hook(reversed(list(traceback.walk_stack(frame))), method)
            raise _Hangs(f"no sign of life for {self.seconds:g} s (ten times engine.timeout_seconds): it hangs {where}")

        before = signal.signal(signal.SIGALRM, hangs)
        self._watching = True
        self.alive()
        try:
            yield
        except _Hangs as hung:
            raise MethodError(str(hung)) from hung
        finally:
            self._watching = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

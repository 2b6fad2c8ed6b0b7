"""Which parts there are, in which order, and how long each may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"


@dataclass(frozen=True)
class Part:
    """name: of its file and module. share: of the whole time that it may use, if those before it used theirs."""

    name: str
    title: str
    share: float


PARTS = (
    Part("machine", "The machine", 0.02),
    Part("suite", "Tests marked `gpu`", 0.24),
    Part("identity", "Identity of every method", 0.20),
    Part("energy", "Energy", 0.10),
    Part("roofline", "Forwards against the machine's bandwidth", 0.16),
    Part("scale", "Methods at true scale", 0.14),
    Part("sharing", "Two processes on one device", 0.06),
    Part("pairs", "Pairs with weights that were trained", 0.08),
)


@dataclass
class Task:
    """What a part is given. seconds: how long it may take; it leaves out what it has no time for, and says so."""

    out: Path
    device: str
    seconds: float
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._begin = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.monotonic() - self._begin)

    @property
    def on_accelerator(self) -> bool:
        return self.device.startswith("cuda")


def result(status: str, verdict: str, **facts: Any) -> dict[str, Any]:
    """What a part returns. verdict: one line for the page's first table; `tables` and `notes` of `facts` follow there."""
    assert status in (PASSED, FAILED, NOT_RUN)
    return {"status": status, "verdict": verdict, **facts}

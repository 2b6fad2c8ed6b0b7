"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass

PASS, FAIL, SKIP = "pass", "FAIL", "skip"


@dataclass(frozen=True)
class Result:
    """status: pass, FAIL or skip (nothing was claimed that this check is about); detail: one line on what was seen."""

    status: str
    detail: str

    @classmethod
    def of(cls, problem: str | None, detail: str) -> Result:
        """FAIL with the problem if there is one, else pass with the detail."""
        return cls(PASS, detail) if problem is None else cls(FAIL, problem)

"""How much is drafted, by name: `method.stop=<name>`, or a node with options of its own.

May be touched: a stop of one's own is a class beside these (or in a plugin) that says more in `budget`, `goes_on` or `learn`.
"""

from __future__ import annotations

from specbench.config.create import named_part
from specbench.parts.contracts import Stop
from specbench.parts.stops.confidence import Confidence
from specbench.parts.stops.heuristic import Heuristic

STOPS: dict[str, type[Stop]] = {"fixed": Stop, "confidence": Confidence, "heuristic": Heuristic}


def make_stop(stop: object, draft_length: int | None) -> Stop:
    """What `method.stop` means: a name, a stop, or None for a fixed length. Raises ConfigError (method.stop)."""
    made: Stop = named_part("method.stop", "fixed" if stop is None else stop, Stop, STOPS)
    if made.draft_length is None:
        made.draft_length = draft_length
    return made

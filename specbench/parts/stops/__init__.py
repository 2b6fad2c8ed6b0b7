"""How much is drafted, by name: `method.stop=<name>`, or a node with options of its own.

May be touched: a stop of one's own is a class beside these (or in a plugin) that says more in `budget`, `goes_on` or `learn`.
"""

from __future__ import annotations

from specbench.config.create import named_part
from specbench.config.options import ConfigError
from specbench.parts.contracts import Stop
from specbench.parts.stops.confidence import Confidence
from specbench.parts.stops.heuristic import Heuristic

STOPS: dict[str, type[Stop]] = {"fixed": Stop, "confidence": Confidence, "heuristic": Heuristic}


def make_stop(stop: object, draft_length: int | None, tree: bool = False) -> Stop:
    """What `method.stop` means: a name, a stop, or None for a fixed length. tree: of drafts that are not made token by token.

    Raises ConfigError (method.stop), also for a stop that would never be asked.
    """
    made: Stop = named_part("method.stop", "fixed" if stop is None else stop, Stop, STOPS)
    if tree and type(made).goes_on is not Stop.goes_on:
        remedy = "decides behind every token, and a tree has levels: use fixed, heuristic, or a stop with a budget"
        raise ConfigError("method.stop", type(made).__name__.lower(), remedy)
    if made.draft_length is None:
        made.draft_length = draft_length
    return made

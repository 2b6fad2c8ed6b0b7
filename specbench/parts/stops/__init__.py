"""How much is drafted, by name: `method.stop=<name>`, or a node with options of its own.

May be touched: a stop of one's own is a class beside these (or in a plugin) that says more in `budget`, `goes_on` or `learn`.
"""

from __future__ import annotations

from specbench.config.create import named_part
from specbench.config.options import ConfigError
from specbench.parts.contracts import Part, Stop
from specbench.parts.stops.confidence import Confidence
from specbench.parts.stops.entropy import Entropy
from specbench.parts.stops.goodput import Goodput
from specbench.parts.stops.heuristic import Heuristic
from specbench.parts.stops.memory import Memory
from specbench.parts.stops.specdec_pp import SpecDecPlusPlus

STOPS: dict[str, type[Stop]] = {
    "fixed": Stop,
    "confidence": Confidence,
    "entropy": Entropy,
    "heuristic": Heuristic,
    "hf": Heuristic,  # as who knows it from transformers looks for it
    "goodput": Goodput,
    "memory": Memory,
    "specdec_pp": SpecDecPlusPlus,
}


def make_stop(stop: object, draft_length: int | None, *, at_once: bool = False, worker: bool = False) -> Stop:
    """What `method.stop` means: a name, a stop, or None for a fixed length.

    at_once: of drafts that are not made token by token (trees, copies): nobody would ask a stop between two. worker: of a draft
    in a process of its own, which a stop goes to as it was made: unopened, and out of reach at the end of a pass.
    Raises ConfigError (method.stop) for a stop that needs what it would not get.
    """
    made: Stop = named_part("method.stop", "fixed" if stop is None else stop, Stop, STOPS)
    kind, name = type(made), stop if isinstance(stop, str) else type(made).__name__.lower()
    if at_once and kind.goes_on is not Stop.goes_on:
        remedy = "decides behind every token, and this draft is made in one piece or by levels: use fixed or heuristic"
        raise ConfigError("method.stop", name, remedy)
    if worker and (kind.open is not Part.open or kind.needs.scope == "session" or kind.draft_taps):
        remedy = "works where the target and its draft take turns, not for a draft in a process of its own: use fixed, " + (
            "confidence, entropy or heuristic"
        )
        raise ConfigError("method.stop", name, remedy)
    if made.draft_length is None:
        made.draft_length = draft_length
    return made

"""What the methods would do on several machines: over acceptance, draft length and the size of the draft."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specbench.config.draft_errors import DraftErrors
from specbench.config.options import ConfigError
from specbench.config.say import counted
from specbench.config.specs import PairSpec
from specbench.measure.records import store
from specbench.method import create_method
from specbench.sim.acceptance import Profile, Text, in_chain, pattern_text, rate_of, recorded_texts, refuse_chain
from specbench.sim.costs import Costs
from specbench.sim.hardware import load_costs
from specbench.sim.options import SimConfig
from specbench.sim.play import Played, play, refuse_what_cannot_be_simulated

Node = Mapping[str, Any]
LENGTH = "draft_length"


def texts_of(options: SimConfig, acceptance: str | float) -> list[Text]:
    """Texts by an acceptance as it is written, and by those of further stages. Raises ConfigError for one that is none."""
    texts = first_texts(options, str(acceptance))
    first = rate_of(texts)
    with contextlib.suppress(ValueError):
        first = float(acceptance)
    return in_chain(texts, first, options.stage_acceptance, options.seed) if options.stage_acceptance else texts


def first_texts(options: SimConfig, written: str) -> list[Text]:
    rates: tuple[float, ...] = ()
    names = [f"simulated/{number}" for number in range(options.samples)]
    size = (options.prompt_tokens, options.tokens, options.seed)
    if store.is_run_folder(written):
        run = store.read_run(written)
        refuse_chain(run, "acceptance", written)
        limit = int(run["config"]["decoding"]["max_new_tokens"])
        texts, _ = recorded_texts(store.read_samples(written), store.read_rounds(written), limit, options.seed)
        return texts
    with contextlib.suppress(ValueError):
        rates = tuple(float(rate) for rate in written.split("/"))
    if rates:
        return [Profile(rates).text(name, 0, *size) for name in names]
    try:
        errors = DraftErrors.parse(written, "acceptance")
    except ConfigError as error:
        remedy = f"give a rate, rates by run length (0.8/0.7), a run folder, or a pattern: {error.remedy}"
        raise ConfigError("acceptance", written, remedy) from None
    return [pattern_text(errors, name, 0, *size) for name in names]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What methods say while they calibrate themselves is about the simulated machine, thousands of times."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def with_length(node: Node, length: int) -> Node:
    """The method with another draft length; a look-ahead that would be too short grows with it."""
    made = {**node, LENGTH: length}
    if isinstance(node.get("max_lookahead"), int):
        made["max_lookahead"] = max(node["max_lookahead"], length)
    return made


@dataclass(frozen=True)
class Cell:
    """One method on one machine at one acceptance, with one draft."""

    devices: str
    label: str
    method: str
    acceptance: float
    draft_length: int
    draft_share: float | None
    tokens_per_second: float
    speedup: float


class Bench:
    """Plays cells; each machine's baseline once. nodes: methods by name; baseline: the node that all are compared with."""

    def __init__(self, options: SimConfig, pair: PairSpec, nodes: Mapping[str, Node], baseline: Node):
        self.options, self.pair, self.nodes, self.baseline = options, pair, nodes, baseline
        methods = {name: create_method(node) for name, node in nodes.items()}
        for name, method in methods.items():
            refuse_what_cannot_be_simulated(nodes[name], method)
            if nodes[name].get(LENGTH, 0) is None:  # as YAMLs say that it does not apply
                raise ConfigError("methods", name, f"has no {LENGTH}, and a comparison runs over it: take one that has")
        self.stages = {name: method.needs.stages for name, method in methods.items()}
        self._costs: dict[tuple[str, float | None, tuple[str, ...]], Costs] = {}
        self._texts: dict[str | float, list[Text]] = {}
        self._played: dict[tuple[str, str | float], Played] = {}

    def refuse_other_stages(self) -> None:
        """Raises ConfigError for rates of more stages than any of the methods has: nobody would be asked them."""
        further, rates = max(max(0, len(stages) - 1) for stages in self.stages.values()), self.options.stage_acceptance
        if len(rates) > further:
            remedy = (
                f"the longest chain here has {counted(further, 'stage')} behind its first: give so many rates (method.stages)"
            )
            raise ConfigError("stage_acceptance", list(rates), remedy)

    def costs(self, devices: str, method: str | None = None, share: float | None = None) -> Costs:
        key = (devices, share, self.stages.get(method or "", ()))
        if key not in self._costs:
            self._costs[key] = load_costs(devices, self.pair, share, key[2])
        return self._costs[key]

    def texts(self, acceptance: str | float) -> list[Text]:
        if acceptance not in self._texts:
            self._texts[acceptance] = texts_of(self.options, acceptance)
        return self._texts[acceptance]

    def base(self, devices: str, acceptance: str | float) -> Played:
        """The baseline asks no draft: it is the same for every share."""
        if (devices, acceptance) not in self._played:
            self._played[devices, acceptance] = play(self.baseline, self.costs(devices), self.texts(acceptance), "baseline")
        return self._played[devices, acceptance]

    def play(
        self, devices: str, method: str, acceptance: str | float, length: int | None, share: float | None = None
    ) -> Played:
        node = self.nodes[method] if length is None else with_length(self.nodes[method], length)
        with quiet():
            return play(node, self.costs(devices, method, share), self.texts(acceptance))

    def cell(self, devices: str, method: str, acceptance: str | float, length: int, share: float | None = None) -> Cell:
        played, base = self.play(devices, method, acceptance, length, share), self.base(devices, acceptance)
        rate, label = played.tokens_per_second, self.costs(devices).label
        given = rate_of(self.texts(acceptance)) if isinstance(acceptance, str) else acceptance
        return Cell(devices, label, method, given, length, share, rate, rate / base.tokens_per_second)

    def over_acceptance(self) -> list[Cell]:
        """Every machine, method, acceptance and length, with the pair's own draft; no draft is better than a further stage."""
        o = self.options
        most = min(o.stage_acceptance, default=1.0)
        return [
            self.cell(devices, method, acceptance, length)
            for devices in o.devices
            for method in self.nodes
            for acceptance in o.acceptances
            if acceptance <= most
            for length in o.draft_lengths
        ]

    def over_share(self, acceptance: str) -> list[Cell]:
        """The same over the draft's size, on presets: nobody measured a draft of another size."""
        o = self.options
        return [
            self.cell(devices, method, acceptance, length, share)
            for devices in o.devices
            if not devices.endswith(".json")
            for method in self.nodes
            for share in o.draft_shares
            for length in o.draft_lengths
        ]


def best(cells: Sequence[Cell], *by: str) -> list[Cell]:
    """Of each machine, method and `by` the cell with the best draft length; of equal ones the shortest."""
    found: dict[tuple[Any, ...], Cell] = {}
    for cell in sorted(cells, key=lambda cell: cell.draft_length):
        key = (cell.devices, cell.method, *(getattr(cell, name) for name in by))
        if key not in found or cell.speedup > found[key].speedup:
            found[key] = cell
    return list(found.values())


def crossing(x: Sequence[float], above: Sequence[float], below: Sequence[float], log: bool = False) -> float | None:
    """Where the first line leaves the second behind for good, as x rises: linear between points; None where it never does.

    The first x where it is ahead from the beginning.
    """
    gap = np.asarray(above, dtype=float) - np.asarray(below, dtype=float)
    at = np.log(np.asarray(x, dtype=float)) if log else np.asarray(x, dtype=float)
    if gap[-1] <= 0:
        return None
    behind = np.nonzero(gap <= 0)[0]
    if not len(behind):
        return float(x[0])
    i = int(behind[-1])
    found = at[i] + (at[i + 1] - at[i]) * (-gap[i]) / (gap[i + 1] - gap[i])
    return float(np.exp(found) if log else found)


def largest_that_pays(cells: Sequence[Cell]) -> float | None:
    """The largest share whose best speed-up is above 1, along one machine and method; None where no draft pays."""
    line = sorted(cells, key=lambda cell: cell.draft_share or 0.0, reverse=True)
    shares = [cell.draft_share or 0.0 for cell in line]
    # Going from the largest draft to the smallest, where the speed-up comes above 1 and stays there.
    found = crossing([-share for share in shares], [cell.speedup for cell in line], [1.0] * len(line))
    return None if found is None else -found


def line_of(cells: Sequence[Cell], devices: str, method: str) -> list[Cell]:
    return [cell for cell in cells if cell.devices == devices and cell.method == method]


def overtaking(
    cells: Sequence[Cell], devices: str, method: str, other: str
) -> tuple[list[Cell], list[Cell], float | None] | None:
    """Both methods' best cells on a machine, at each acceptance that both have, and where the first overtakes for good.

    None where they have not two acceptances in common.
    """
    mine, theirs = ({c.acceptance: c for c in best(line_of(cells, devices, name), "acceptance")} for name in (method, other))
    rates = sorted(set(mine) & set(theirs))
    if len(rates) < 2:
        return None
    at = crossing(rates, [mine[r].speedup for r in rates], [theirs[r].speedup for r in rates])
    return [mine[r] for r in rates], [theirs[r] for r in rates], at


def played_best(bench: Bench, devices: str, method: str, acceptance: str | float) -> tuple[int, Played]:
    """The best draft length at an acceptance, and what was played with it."""
    found = [(length, bench.play(devices, method, acceptance, length)) for length in bench.options.draft_lengths]
    return max(found, key=lambda item: item[1].tokens_per_second)

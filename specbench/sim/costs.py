"""What a forward takes: a grid of points over rows, context and batch, measured on a machine, or a roofline from data sheets.

A grid is linear between its points, never falls where there is more to do, and says nothing far from where it was measured. By
its rows a kernel takes steps, of which a line between two points knows nothing: measure every number of rows that is met.
A roofline (Williams, Waterman, Patterson 2009) takes the longer of moving the weights and computing with them.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np

from specbench.parts.shapes.static import never_falling

T = TypeVar("T")
AXES = ("rows", "context", "batch")
REACH = 1.5  # a grid answers up to so many times its largest point, along its last stretch


class CostError(ValueError):
    """A forward that nobody measured anything like."""


class Curve(Protocol):
    """Seconds of one forward. rows: new tokens of each sequence; context: fed before, of each; batch: sequences."""

    def seconds(self, rows: int, context: int, batch: int = 1) -> float: ...


def _is_point(point: object) -> bool:
    if not isinstance(point, Sequence) or len(point) != 4:
        return False
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in point):
        return False
    return bool(point[0] >= 1 and point[1] >= 0 and point[2] >= 1 and point[3] > 0)


class Grid:
    """Measured points [rows, context, batch, seconds], one for every combination of what occurs on the axes.

    Noise may make a smaller forward look dearer than a larger one: then the mean counts for both (`never_falling`), and not the
    dearer, which would carry one bad reading upwards. name: for errors. Raises CostError for points that are none or leave a
    combination out.
    """

    def __init__(self, points: Iterable[Sequence[float]], name: str = "cost curve"):
        self.name = name
        found = {}
        for point in points if isinstance(points, Iterable) else [points]:
            if not _is_point(point):
                raise CostError(f"{name}: {point!r} is no point: give rows, context, batch and seconds")
            found[tuple(int(value) for value in point[:3])] = float(point[3])
        self.axes = [sorted({key[axis] for key in found}) for axis in range(3)]
        shape = tuple(map(len, self.axes))
        if not found or len(found) != np.prod(shape):
            wanted = " x ".join(str(number) for number in shape)
            raise CostError(f"{name}: {len(found)} points where every combination ({wanted}) is needed: measure again")
        values = np.empty(shape)
        for key, seconds in found.items():
            values[tuple(self.axes[axis].index(value) for axis, value in enumerate(key))] = seconds
        for axis in range(3):
            # What never falls along the axes before still does not: of two sequences the larger stays the larger.
            values = np.apply_along_axis(lambda line: np.array(never_falling(line.tolist())), axis, values)
        self._values: list[list[list[float]]] = values.tolist()
        self._known: dict[tuple[int, int, int], float] = {}

    def seconds(self, rows: int, context: int, batch: int = 1) -> float:
        """Raises CostError far above what was measured, and below it where less was never tried (a batch of 1, say)."""
        key = (rows, context, batch)
        if key not in self._known:
            (r, dr), (c, dc), (b, db) = (self._place(axis, at) for axis, at in enumerate(key))
            total = 0.0
            for i, wi in ((r, 1 - dr), (r + 1, dr)):
                for j, wj in ((c, 1 - dc), (c + 1, dc)):
                    for k, wk in ((b, 1 - db), (b + 1, db)):
                        if weight := wi * wj * wk:
                            total += weight * self._values[i][j][k]
            self._known[key] = total
        return self._known[key]

    def _place(self, axis: int, at: int) -> tuple[int, float]:
        """The point below `at` on an axis, and how far it is to the next, 1 being all the way."""
        points, name = self.axes[axis], AXES[axis]
        if at > REACH * max(points[-1], 1) or (at < points[0] and name != "context"):
            raise CostError(
                f"{self.name}: {name}={at} is far from what was measured ({points[0]} to {points[-1]}): measure there"
            )
        if at <= points[0] or len(points) == 1:
            return 0, 0.0
        low = min(bisect.bisect_right(points, at) - 1, len(points) - 2)
        return low, (at - points[low]) / (points[low + 1] - points[low])

    @property
    def points(self) -> list[list[float]]:
        """As they are used: none cheaper than a smaller one."""
        rows, context, batch = self.axes
        return [
            [r, c, b, self._values[i][j][k]]
            for i, r in enumerate(rows)
            for j, c in enumerate(context)
            for k, b in enumerate(batch)
        ]


@dataclass(frozen=True)
class Size:
    """What of a model costs time. parameters: that every row multiplies with; kv_bytes: keys and values of one token;
    weight_bytes: of one parameter."""

    parameters: float
    kv_bytes: float
    weight_bytes: float = 2.0

    def scaled(self, share: float) -> Size:
        """A model of `share` of its parameters, its cache in proportion."""
        return replace(self, parameters=self.parameters * share, kv_bytes=self.kv_bytes * share)


@dataclass(frozen=True)
class Roofline:
    """Weights and cache are read once a forward, every row multiplies with every weight; the slower of the two counts.

    bytes_per_second, flops_per_second: what can be had of the device. overhead_seconds: of launching a forward of any size.
    """

    size: Size
    bytes_per_second: float
    flops_per_second: float
    overhead_seconds: float = 0.0

    def seconds(self, rows: int, context: int, batch: int = 1) -> float:
        moved = self.size.parameters * self.size.weight_bytes + self.size.kv_bytes * (context + rows) * batch
        computed = 2.0 * self.size.parameters * rows * batch
        return self.overhead_seconds + max(moved / self.bytes_per_second, computed / self.flops_per_second)


@dataclass(frozen=True)
class Link:
    """Between two processes: a message of n bytes is there after latency_seconds + n / bytes_per_second."""

    latency_seconds: float = 0.0
    bytes_per_second: float = float("inf")

    def seconds(self, num_bytes: int) -> float:
        return self.latency_seconds + num_bytes / self.bytes_per_second


ALONE, TURNS, BESIDE = "alone", "turns", "beside"
COMPANY = ("waiting", "row", "rows")  # what one beside may do: wait, a forward of one row, of several


class Company(Protocol):
    """Seconds of a forward beside others, of whom each is at work on so many rows (0: it waits); the target's come first."""

    def seconds(self, rows: int, context: int, beside: Sequence[int]) -> float: ...


@dataclass(frozen=True)
class Neighbours:
    """Measured in each `COMPANY` of one other. Of several others, which nobody measured, it is the mean (ours)."""

    curves: tuple[Curve, ...]

    def seconds(self, rows: int, context: int, beside: Sequence[int]) -> float:
        return sum(self.curves[min(other, 2)].seconds(rows, context) for other in beside) / len(beside)


@dataclass(frozen=True)
class Sharing:
    """A roofline whose `shared` rates are divided by all who are at work, and its others by those on the same device.

    is_apart: it has a device of its own, as the target has; stages of a chain may have one together.
    """

    alone: Roofline
    shared: frozenset[str]
    is_apart: bool

    def seconds(self, rows: int, context: int, beside: Sequence[int]) -> float:
        at_work = sum(other > 0 for other in beside)
        here = 0 if self.is_apart else sum(other > 0 for other in beside[1:])
        parts = [1 + (at_work if rate in self.shared else here) for rate in RATES]
        return _part(self.alone, *parts).seconds(rows, context)


RATES = ("bytes_per_second", "flops_per_second")


@functools.cache
def _part(whole: Roofline, *parts: int) -> Roofline:
    return replace(whole, **{rate: getattr(whole, rate) / part for rate, part in zip(RATES, parts, strict=True)})


@dataclass(frozen=True)
class Costs:
    """One pair on one machine. label: the machine's name; source: "roofline" or "measured"; num_devices: that the pair is on.

    A forward costs differently by its company: ALONE (no draft at work) and TURNS (both in one process, each pushing the
    other's weights out of the caches) are modes of `curves`; `beside` has what it costs where all are at once, each on devices
    or cores of its own, by what the others do at that moment. prefill: of prompts, by role. around: what a schedule does around
    each forward, in seconds, by its key (`around.key_of`) and role; of others nothing is known, and they are charged nothing.
    facts: what run.json says of where this is from.
    """

    label: str
    source: str
    curves: Mapping[tuple[str, str], Curve]  # by role and mode
    prefill: Mapping[str, Curve]
    link: Link
    num_devices: int
    facts: Mapping[str, object]
    beside: Mapping[str, Company] = field(default_factory=dict)  # by role
    around: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def curve(self, role: str, mode: str) -> Curve:
        """Raises CostError for a role and mode that nothing is known of."""
        return self._known({f"{r} {m}": curve for (r, m), curve in self.curves.items()}, f"{role} {mode}")

    def company(self, role: str) -> Company:
        """Raises CostError for a role that nothing is known of beside others."""
        return self._known({f"{r} {BESIDE}": company for r, company in self.beside.items()}, f"{role} {BESIDE}")

    def _known(self, there: Mapping[str, T], name: str) -> T:
        if name not in there:
            raise CostError(f"{self.label}: no costs of the {name}; there are: {', '.join(there) or 'none'}")
        return there[name]

"""How every figure looks, and how it is saved: PDF (vector, fonts embedded as type 42), PNG, and the data as CSV.

A method has one colour and one marker, in every figure of every report (`look`); its variants differ in line style and fill
(`looks`). What is no method (parts of the time, devices) has Okabe and Ito's colour-blind-safe set in an order of falling
darkness. Figures are drawn on the Agg canvas without pyplot: no global state, no display.
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison
from specbench.analysis.show.captions import setting, slug
from specbench.analysis.show.csv_text import csv_text
from specbench.analysis.show.fonts import families

COLOURS = ("#000000", "#D55E00", "#0072B2", "#CC79A7", "#009E73", "#E69F00", "#56B4E9", "#8C8C8C")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)), (0, (1, 1)), (0, (3, 1, 1, 1)))
MAX_SERIES = len(COLOURS)
MAX_GROWTHS = 5  # of a figure whose names leave no room, each by 1.4

NEUTRAL, METHOD_COLOURS = "#5F6B76", (
    *("#0072B2", "#D55E00", "#009E73", "#AA3377", "#E69F00", "#56B4E9", "#882255"),
    *("#7A4B1E", "#332288", "#CC6677", "#8C8C22", "#44AA99", "#117733", "#B8860B"),
)  # fmt: skip
METHOD_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "p", "<", ">", "h")
AUTOREGRESSIVE = "autoregressive"
PLACES = (  # append only: a method's look is its place, the first fourteen differ in colour alone
    *("speculative", "amusd", "eagle", "medusa", "hydra", "pearl", "lookahead"),
    *("prompt_lookup", "layerskip", "osd", "suffix", "sam", "token_recycling", "rest"),
    *("stand", "rasd", "swift", "specinfer", "spectr", "rsd", "dyspec", "sequoia"),
    *("ssd", "dsi", "pipespec", "easyspec", "mirror_sd"),
)  # fmt: skip
_CYCLES = 4  # of the colours; each method of a colour has a marker of its own

RC: Any = {
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2.0,
    "figure.dpi": 100,
    "savefig.dpi": 160,
}

WIDTH = 6.8  # inches: a text column of an A4 page


@dataclass
class Drawing:
    """A figure with its data and what it says below itself. `name` is the file name."""

    name: str
    title: str
    figure: Figure
    data: pd.DataFrame
    caption: str

    @classmethod
    def of_cell(
        cls, name: str, title: str, figure: Figure, data: pd.DataFrame, caption: str, group: Group, comparison: Comparison
    ) -> Drawing:
        """Of one pair and data set: name and title end in them, the caption in how they were run."""
        where = slug(comparison.pair, comparison.data)
        how = setting(group.conditions, [comparison])
        return cls(f"{name}_{where}", f"{title}: {comparison.data}, {comparison.pair}", figure, data, f"{caption} {how}")

    def save(self, folder: Path) -> list[Path]:
        """name.pdf, name.png and name.csv in the folder; returns the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{self.name}.{ending}" for ending in ("pdf", "png", "csv")]
        with styled():
            box = self.bounds()
            self.figure.savefig(paths[0], bbox_inches=box, metadata={"CreationDate": None})
            self.figure.savefig(paths[1], bbox_inches=box, metadata={"Software": None})
        paths[2].write_text(csv_text(self.data), encoding="utf-8")
        return paths

    def bounds(self) -> Bbox:
        """What the figure covers, in inches. The layout is made once and kept: it costs more than all the rest of drawing."""
        for _ in range(MAX_GROWTHS):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                self.figure.draw_without_rendering()
            if not any("constrained_layout not applied" in str(one.message) for one in said):
                break
            self.figure.set_size_inches(*(1.4 * self.figure.get_size_inches()))  # long names leave the axes no room
        self.figure.set_layout_engine(None)  # none at all: for one that does nothing savefig would draw a second time
        return self.figure.get_tightbbox().padded(0.06)


def styled() -> AbstractContextManager[None]:
    """The look of all figures, for the time of a with block."""
    return matplotlib.rc_context(RC | {"font.family": families()})


def new_figure(
    rows: int = 1, columns: int = 1, *, width: float = WIDTH, height: float = 2.9, **options: Any
) -> tuple[Figure, Any]:
    """A figure and its axes as an array of shape [rows, columns]."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


@dataclass
class Panels:
    """A figure of equal panels, in rows of as many as fit. left: those of the first column; lowest: the last of each column."""

    figure: Figure
    axes: list[Any]
    left: list[Any]
    lowest: list[Any]


def new_panels(number: int, *, across: int, top: float, each: float, **options: Any) -> Panels:
    """`number` panels, at most `across` side by side; top, each: inches for the whole figure and for each row."""
    columns = min(across, number)
    rows = -(-number // columns)
    figure, axes = new_figure(rows, columns, height=top + each * rows, **options)
    for axis in axes.flat[number:]:
        axis.remove()
    used = list(axes.flat[:number])
    return Panels(figure, used, used[::columns], used[-columns:])


class Ladder:
    """Rows under bold headings, down the side of a chart. gap: between the last row and the next heading, in rows."""

    def __init__(self, gap: float = 0.3):
        self.gap, self.bottom = gap, 0.0
        self.rungs: list[tuple[float, str, bool]] = []

    def head(self, label: str) -> None:
        self.bottom += self.gap if self.rungs else 0.0
        self.row(label, is_head=True)

    def row(self, label: str, is_head: bool = False) -> float:
        """Its place on the axis."""
        at = self.bottom
        self.rungs.append((at, label, is_head))
        self.bottom += 1
        return at

    def label(self, axes: Any, margin: float = -0.2) -> None:
        """Label the first of the axes, which share it. margin: rows that are left free below the last one."""
        first, *_ = every = list(np.ravel(axes))
        first.set_yticks([at for at, _, _ in self.rungs], [label for _, label, _ in self.rungs])
        for tick, (_, _, is_head) in zip(first.get_yticklabels(), self.rungs, strict=True):
            tick.set_fontweight("bold" if is_head else "normal")
        for axis in every:
            axis.set_ylim(self.bottom + margin, -0.8)
            axis.grid(axis="y", visible=False)
            axis.tick_params(axis="y", length=0)


def look(method: str) -> dict[str, Any]:
    """Colour and marker of a method, whatever stands beside it. Methods without a place share what the places leave by hash."""
    if method == AUTOREGRESSIVE:
        return {"color": NEUTRAL, "marker": "o"}
    colours, markers = len(METHOD_COLOURS), len(METHOD_MARKERS)
    if method in PLACES:
        place = PLACES.index(method)
        cycle, colour = divmod(place, colours)
        return {"color": METHOD_COLOURS[colour], "marker": METHOD_MARKERS[(colour + cycle * markers // _CYCLES) % markers]}
    free = markers - _CYCLES
    number, colour = divmod(zlib.crc32(method.encode()) % (colours * free), colours)
    left = [m for i, m in enumerate(METHOD_MARKERS) if (i - colour) % (markers // _CYCLES)]
    return {"color": METHOD_COLOURS[colour], "marker": left[number]}


def looks(labels: Iterable[str], methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker, line style and marker's fill by label: variants of one method differ in the last two, in turn."""
    found: dict[str, dict[str, Any]] = {}
    variants: dict[str, int] = {}
    for label, method in dict(zip(labels, methods, strict=True)).items():
        number = variants[method] = variants.get(method, -1) + 1
        own = look(method)
        face = own["color"] if number % 2 == 0 else "white"
        found[label] = own | {"linestyle": LINES[number % MAX_SERIES], "markerfacecolor": face}
    return found


def series(number: int) -> dict[str, Any]:
    """Colour, marker and line style of the n-th series of a line chart, where a series is no method."""
    i = number % MAX_SERIES
    return {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": LINES[i]}


def filled(number: int) -> dict[str, Any]:
    """Face and edge of the n-th series of a bar chart, where a series is no method."""
    return bar(COLOURS[number % MAX_SERIES])


def bar(colour: str, variant: int = 0) -> dict[str, Any]:
    """A bar of a colour; later variants are paler."""
    whiteness = 0.45 + 0.5 * min(variant, 4) / 4
    face = tuple(part + (1 - part) * whiteness for part in matplotlib.colors.to_rgb(colour))
    return {"facecolor": face, "edgecolor": colour, "linewidth": 0.8}


def errors(values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> np.ndarray:
    """[2, n] distances for errorbar; NaN ends draw nothing."""
    center = np.asarray(values, dtype=float)
    ends = np.vstack([center - np.asarray(low, dtype=float), np.asarray(high, dtype=float) - center])
    return np.clip(np.nan_to_num(ends, nan=0.0), 0.0, None)


def legend_below(figure: Figure, more: Mapping[str, Any] | None = None) -> None:
    """A legend of every label in the figure, each once, under the axes, where it can hide nothing.

    As many columns as its longest label allows. more: further handles by label.
    """
    found: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    found |= more or {}
    if found:
        columns = max(1, min(len(found), int(figure.get_figwidth() * 15 / (max(map(len, found)) + 6))))
        look: Any = {"loc": "outside lower center", "frameon": False, "handlelength": 2.8}
        figure.legend(found.values(), found.keys(), ncols=columns, **look)


def picture(drawing: Drawing) -> bytes:
    """The figure as PNG bytes, for notebooks and pages."""
    buffer = io.BytesIO()
    with styled():
        drawing.figure.savefig(buffer, format="png", bbox_inches=drawing.bounds())
    return buffer.getvalue()

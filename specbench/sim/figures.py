"""The figure of a comparison: speed-up over acceptance, draft length and the draft's size, a column per machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from specbench.analysis.show.style import AUTOREGRESSIVE, Drawing, legend_below, look, new_figure, series, styled
from specbench.sim.compare import Cell, best, line_of, overtaking
from specbench.sim.serving import POLICY, Served

ROW_HEIGHT, LEGEND_HEIGHT, MAX_COLUMNS = 2.0, 0.5, 4


def comparison(over_acceptance: Sequence[Cell], over_share: Sequence[Cell], asked: str, at: float, source: str) -> Drawing:
    """Rows: acceptance (each method at its best draft length), draft length and draft size (both at the acceptance `asked`).

    at: the share of right drafts in the texts drawn for it.
    """
    set_to = float(asked) if is_rate(asked) else at
    devices = list(dict.fromkeys(cell.devices for cell in over_acceptance))[:MAX_COLUMNS]
    methods = list(dict.fromkeys(cell.method for cell in over_acceptance))
    labels = {cell.devices: cell.label for cell in over_acceptance}
    near = min({cell.acceptance for cell in over_acceptance}, key=lambda rate: abs(rate - set_to))
    rows = 3 if over_share else 2
    with styled():
        height = ROW_HEIGHT * rows + LEGEND_HEIGHT
        figure, axes = new_figure(rows, len(devices), width=max(3.4, 2.15 * len(devices)), height=height, sharey="row")
        for column, name in enumerate(devices):
            axes[0, column].set_title(labels[name])
            for method in methods:
                marks = look(method) | {"label": method, "markersize": 3.5}
                line = sorted(best(line_of(over_acceptance, name, method), "acceptance"), key=lambda cell: cell.acceptance)
                axes[0, column].plot([c.acceptance for c in line], [c.speedup for c in line], **marks)
                line = [c for c in line_of(over_acceptance, name, method) if c.acceptance == near]
                axes[1, column].plot([c.draft_length for c in line], [c.speedup for c in line], **marks)
                if over_share:
                    shares = sorted(best(line_of(over_share, name, method), "draft_share"), key=lambda c: c.draft_share or 0)
                    axes[2, column].plot([100 * (c.draft_share or 0) for c in shares], [c.speedup for c in shares], **marks)
            for other in (m for m in methods if m != "speculative"):
                _mark_crossing(axes[0, column], over_acceptance, name, other)
            axes[0, column].set_xlabel("acceptance")
            axes[1, column].set_xlabel("draft length")
            axes[1, column].set_xscale("log", base=2)
            _ticks(axes[1, column], sorted({c.draft_length for c in over_acceptance}))
            if over_share:
                axes[2, column].set_xscale("log")
                axes[2, column].set_xlabel("draft, % of the target")
                _ticks(axes[2, column], [1, 2, 5, 10, 20, 50])
        for row in axes:
            row[0].set_ylabel("speed-up")
            for axis in row:
                axis.axhline(1.0, color=look(AUTOREGRESSIVE)["color"], linewidth=0.9, linestyle="--", zorder=1)
                axis.set_ylim(bottom=0)
        legend_below(figure)
    said = f"at acceptance {asked} as asked ({at:.3g} of the texts' drafts are right)"
    of_shares = f"; below: over the draft's size, as a share of the target's parameters, {said}" if over_share else ""
    caption = (
        f"Simulated, {source}: nothing here was measured as a speed. Top: each method at its best draft length over "
        f"acceptance, as set; a ring where a method overtakes speculative decoding for good. Middle: over the draft length, at "
        f"acceptance {near:g} as set{of_shares}, each at its best draft length. Dashed: autoregressive decoding."
    )
    data = pd.DataFrame([*over_acceptance, *over_share])
    return Drawing("simulated_speedup", "Speed-up on machines that are not here", figure, data, caption)


def is_rate(written: str) -> bool:
    """Whether an acceptance is written as one number."""
    try:
        float(written)
    except ValueError:
        return False
    return True


def serving(found: Mapping[float, Sequence[Served]], label: str, source: str) -> Drawing:
    """Left: mean latency over the rate of requests, fixed lengths against the policy. Right: the draft length it takes."""
    rates = list(found)
    policies = [served.policy for served in found[rates[0]]]
    with styled():
        figure, axes = new_figure(1, 2, height=2.9)
        left, right = axes[0]
        fixed = [policy for policy in policies if policy != POLICY]
        for number, policy in enumerate([*fixed, POLICY]):
            line = [next(s for s in found[rate] if s.policy == policy) for rate in rates]
            marks = {"color": "black", "marker": "o", "linewidth": 2.2} if policy == POLICY else series(1 + number)
            left.plot(rates, [1e3 * s.mean_latency_seconds for s in line], **(marks | {"label": policy, "markersize": 3.5}))
        chosen = [next(s for s in found[rate] if s.policy == POLICY) for rate in rates]
        right.plot(rates, [s.mean_length for s in chosen], color="black", marker="o", markersize=3.5, linewidth=2.2)
        for axis in (left, right):
            axis.set_xscale("log")
            axis.set_xlabel("requests a second")
            _ticks(axis, [rate for rate in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if rates[0] <= rate <= rates[-1]])
        left.set_ylim(bottom=0)
        left.set_ylabel("mean latency, ms")
        right.set_ylabel("mean draft length of the policy")
        right.set_ylim(bottom=0)
        legend_below(figure)
    caption = (
        f"Simulated on {label} ({source}): nothing here was measured as a speed. Left: from a request's arrival to its last "
        "token, on the same arrivals; k: fixed draft length, goodput: before each step the length with most expected tokens "
        "per second, 0 included. Right: what it takes, a mean over steps."
    )
    rows = [{"requests_per_second": rate, **served_row(served)} for rate, all_of in found.items() for served in all_of]
    return Drawing("serving", f"Latency under load: {label}", figure, pd.DataFrame(rows), caption)


def served_row(served: Served) -> dict[str, float | str]:
    return {
        "policy": served.policy,
        **{name: getattr(served, name) for name in ("mean_latency_seconds", "tokens_per_second", "mean_length", "mean_batch")},
    }


def _ticks(axis: object, at: Sequence[float]) -> None:
    x = axis.xaxis  # type: ignore[attr-defined]
    x.set_major_locator(FixedLocator(list(at)))
    x.set_minor_locator(NullLocator())
    x.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _mark_crossing(axis: object, cells: Sequence[Cell], devices: str, method: str) -> None:
    """A ring where the method overtakes speculative decoding, inside of what was looked at."""
    if (both := overtaking(cells, devices, method, "speculative")) is None:
        return
    _, theirs, at = both
    if at is None or at == theirs[0].acceptance:
        return
    height = float(np.interp(at, [c.acceptance for c in theirs], [c.speedup for c in theirs]))
    marks = {"marker": "o", "markersize": 9, "fillstyle": "none", "color": look(method)["color"], "markeredgewidth": 1.3}
    axis.plot([at], [height], **marks, zorder=5)  # type: ignore[attr-defined]

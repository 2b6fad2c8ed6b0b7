"""A comparison as tables, a figure and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from specbench.analysis.show.cells import Column, mark_columns, row_of
from specbench.analysis.show.document import Document
from specbench.analysis.show.table import Table
from specbench.sim.compare import Cell, best, crossing, largest_that_pays, overtaking
from specbench.sim.figures import comparison
from specbench.sim.routing import Touched
from specbench.sim.serving import Served

PAIRS = (("amusd", "speculative"), ("pearl", "speculative"), ("ssd", "speculative"), ("ssd", "amusd"))


@dataclass(frozen=True)
class Line:
    """A method on a machine, at the acceptance that was asked about."""

    label: str
    method: str
    draft_length: int
    tokens_per_second: float
    speedup: float
    pays_from: float | None  # acceptance
    largest_share: float | None  # of the target's parameters; None: no size pays, or none was tried
    busy: Mapping[str, float]  # share of the decoding that each process computed
    folder: str


def table_of(lines: Sequence[Line], acceptance: str, source: str, least: float | None = None) -> Table:
    """least: the smallest acceptance that was tried."""

    def pays(line: Line) -> float | str | None:
        at_edge = line.pays_from is not None and line.pays_from == least
        return f"{line.pays_from:.2f} or below" if at_edge else line.pays_from

    columns = [
        Column("label", "machine", of=lambda line: line.label, text=True, merge=True),
        Column("method", "method", of=lambda line: line.method, text=True),
        Column("draft_length", "best draft length", of=lambda line: line.draft_length, digits=0),
        Column("tokens_per_second", "tokens/s", of=lambda line: line.tokens_per_second, digits=1),
        Column("speedup", "speed-up", of=lambda line: line.speedup, digits=2),
        Column("pays_from", "pays from acceptance", of=pays, digits=2),
        Column(
            "largest_draft_percent",
            "largest draft that pays, % of the target",
            of=lambda line: _percent(line.largest_share),
            digits=0,
        ),
        Column("target_busy_percent", "target busy, %", of=lambda line: 100 * line.busy.get("target", 0.0), digits=0),
        Column("draft_busy_percent", "draft busy, %", of=lambda line: _percent(line.busy.get("draft")), digits=0),
    ]
    rows = [row_of(columns, line) for line in lines]
    for label in dict.fromkeys(line.label for line in lines):
        mark_columns(
            [Column("speedup", "", best="largest")], [r for r, line in zip(rows, lines, strict=True) if line.label == label]
        )
    caption = (
        f"Simulated ({source}), acceptance {acceptance} as asked. Speed-up over autoregressive decoding on the same machine, "
        "at the best draft length of those tried. Pays from: the acceptance, as set, above which the best speed-up stays above "
        "1 (or below: it is above 1 at the smallest that was tried). Largest draft: at the asked acceptance; none is tried "
        "where costs are measured."
    )
    return Table("simulated", f"What the methods would do at acceptance {acceptance}", columns, rows, caption, alike(lines))


def alike(lines: Sequence[Line]) -> list[str]:
    """Machines whose speed-ups are the same as printed, and why."""
    by_speed: dict[tuple[tuple[str, int, str], ...], list[str]] = {}
    for label in dict.fromkeys(line.label for line in lines):
        own = tuple((line.method, line.draft_length, f"{line.speedup:.2f}") for line in lines if line.label == label)
        by_speed.setdefault(own, []).append(label)
    return [
        f"The speed-ups on {', '.join(labels)} are the same: a speed-up knows only how long the draft's forwards take beside "
        "the target's. Where both read their weights from equal memory that is the ratio of their sizes; tokens/s differ."
        for labels in by_speed.values()
        if len(labels) > 1
    ]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def crossings(cells: Sequence[Cell]) -> Table | None:
    """Where one schedule overtakes another on a machine, both at their best draft length."""
    found = []
    for devices in dict.fromkeys(cell.devices for cell in cells):
        for method, other in PAIRS:
            if (both := overtaking(cells, devices, method, other)) is None:
                continue
            line, opposite, at = both
            first = line[0]
            ahead = [mine.acceptance for mine, its in zip(line, opposite, strict=True) if mine.speedup > its.speedup]
            if at is None:
                said = f"between {min(ahead):.2f} and {max(ahead):.2f} alone" if ahead else "never"
            else:
                said = f"from {at:.2f}" if at > first.acceptance else "everywhere"
            found.append({"label": first.label, "method": method, "other": other, "from": said})
    if not found:
        return None
    columns = [
        Column("label", "machine", text=True, merge=True),
        Column("method", "method", text=True),
        Column("other", "is ahead of", text=True),
        Column("from", "acceptance", text=True),
    ]
    rows = [row_of(columns, item, ranked=False) for item in found]
    return Table("crossings", "Where one schedule overtakes another", columns, rows, "Each at its best draft length.")


def pays_from(cells: Sequence[Cell]) -> float | None:
    """The acceptance from which a method's best speed-up stays above 1, along one machine and method."""
    line = sorted(best(cells, "acceptance"), key=lambda cell: cell.acceptance)
    return crossing([c.acceptance for c in line], [c.speedup for c in line], [1.0] * len(line)) if len(line) > 1 else None


def largest_share(cells: Sequence[Cell]) -> float | None:
    line = best(cells, "draft_share")
    return largest_that_pays(line) if len(line) > 1 else None


def document(
    lines: Sequence[Line], cells: Sequence[Cell], shares: Sequence[Cell], acceptance: str, rate: float, source: str, pair: str
) -> tuple[Document, list[Table]]:
    """The report, and the tables to print."""
    doc = Document(f"Simulated decoding: {pair}")
    doc.warning(
        f"Nothing here was measured as a speed. The schedules are the real ones, step for step; what a forward takes is "
        f"{source}, and which drafts are right is given (acceptance {acceptance})."
    )
    for label in dict.fromkeys(line.label for line in lines):
        first = max((line for line in lines if line.label == label), key=lambda line: line.speedup)
        text = (
            f"{first.method} with draft length {first.draft_length} would be {first.speedup:.2f} times autoregressive decoding"
        )
        if first.largest_share is not None:
            text += f"; with it a draft of up to {100 * first.largest_share:.0f} % of the target pays"
        doc.answer(f"{label}:", text + ".")
    tables = [table_of(lines, acceptance, source, min((cell.acceptance for cell in cells), default=None))]
    doc.add(tables[0])
    if len(cells) > 1:
        doc.add(comparison(cells, shares, acceptance, rate, source))
        if (found := crossings(cells)) is not None:
            tables.append(found)
            doc.add(found)
    doc.heading("Run folders")
    for line in lines:
        doc.text(f"{line.label}, {line.method}: {Path(line.folder)}")
    return doc, tables


# ---------------------------------------------------------------------------------------------------- serving, routing
def serving_table(found: Mapping[float, Sequence[Served]], label: str, source: str, replicas: int = 1) -> Table:
    columns = [
        Column("requests_per_second", "requests/s", of=lambda item: f"{item[0]:g}", text=True, merge=True),
        Column("policy", "draft length", of=lambda item: item[1].policy, text=True),
        Column("mean_latency_ms", "mean latency, ms", of=lambda item: 1e3 * item[1].mean_latency_seconds, digits=0),
        Column("tokens_per_second", "tokens/s", of=lambda item: item[1].tokens_per_second, digits=0),
        Column("mean_length", "mean length", of=lambda item: item[1].mean_length, digits=2),
        Column("mean_batch", "mean batch", of=lambda item: item[1].mean_batch, digits=1),
    ]
    rows = []
    for rate, served in found.items():
        some = [row_of(columns, (rate, one)) for one in served]
        mark_columns([Column("mean_latency_ms", "", best="smallest")], some)
        rows += some
    caption = f"Simulated on {label} ({source}). The same arrivals for every length of one rate."
    if replicas > 1:
        caption += f" {replicas:,} replicas; requests/s of each, tokens/s of all, two choices for each request."
    return Table("serving", f"Serving on {label}", columns, rows, caption)


def routing_table(found: Sequence[Touched], model: str) -> Table:
    columns = [
        Column("rows", "rows", of=lambda t: t.rows, digits=0),
        Column("experts", "experts touched", of=lambda t: t.experts, digits=2),
        Column("uniform", "if uniform", of=lambda t: t.uniform, digits=2),
        Column("weight_bytes_ratio", "bytes of weights over those of one row", of=lambda t: t.weight_bytes_ratio, digits=2),
    ]
    rows = [row_of(columns, one, ranked=False) for one in found]
    caption = f"{model}. Distinct experts of a layer that consecutive rows go to, a mean over places and layers. No speed."
    return Table("routing", "Experts that a verification touches", columns, rows, caption)

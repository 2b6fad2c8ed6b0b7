"""The report: every table and figure that the runs at hand support, in chapters of equal conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from specbench.analysis.derive.conditions import Group, apart, groups
from specbench.analysis.derive.derive import Comparison, comparisons
from specbench.analysis.read.frames import Frames, LeftOut, load
from specbench.analysis.reports import reference
from specbench.analysis.show import (
    check_tables,
    figures_power,
    figures_rounds,
    figures_speed,
    figures_time,
    paper_tables,
    run_tables,
)
from specbench.analysis.show.across import across_machines
from specbench.analysis.show.answer import answer
from specbench.analysis.show.document import Document
from specbench.analysis.show.style import Drawing
from specbench.config.say import counted

GroupFigure = Callable[[Frames, Group, Sequence[Comparison]], Drawing | None]
CellFigure = Callable[[Frames, Group, Comparison], Drawing | None]

GROUP_FIGURES: tuple[GroupFigure, ...] = (
    figures_speed.forest,
    figures_speed.against_draft_length,
    figures_speed.against_size_ratio,
    figures_power.power_over_time,
    figures_power.energy_against_speed,
)
CELL_FIGURES: tuple[CellFigure, ...] = (
    figures_time.tokens_over_time,
    figures_rounds.acceptance,
    figures_rounds.accepted_lengths,
    figures_time.where_time_goes,
    figures_time.timelines,
    figures_rounds.rollbacks,
)
MAX_CHAPTERS = 4
MAX_CELLS = 6  # pairs x data sets of a chapter with figures of their own


def report(
    paths: Iterable[str | Path],
    out: str | Path,
    *,
    across: str | None = None,
    with_reference: bool = False,
    unfinished: bool = False,
    title: str = "specbench report",
    workers: int = 1,
) -> Path:
    """Write report.html, report.md, tables/ and figures/ into `out`; returns the path of report.html.

    across: "machines" lists one configuration by device side by side. with_reference: published numbers beside ours. workers:
    processes that save figures (see `saving.save_all`). Raises ValueError when there is nothing to report.
    """
    frames = load(paths, unfinished=unfinished)
    return document(frames, across=across, with_reference=with_reference, title=title).save(Path(out), workers)


def document(
    frames: Frames, *, across: str | None = None, with_reference: bool = False, title: str = "specbench report"
) -> Document:
    """The report of loaded frames. Raises ValueError if no run could be used."""
    require_runs(frames)
    found = groups(frames)
    doc = Document(title)
    taken: set[str] = set()
    parts = [(group, comparisons(frames, group)) for group in found[:MAX_CHAPTERS]]
    main = parts[0][1]
    for head, text in answer(parts):
        doc.answer(head, text)
    picture = figures_speed.forest(frames, found[0], main)
    if picture is not None:
        taken.add(picture.name)
        doc.add(picture, level=0)
    opening(doc, frames)
    doc.contents()
    if len(found) > 1:
        doc.warning(
            f"The runs were made under {len(found)} different sets of conditions. Each has a chapter of its own; no table or "
            "figure mixes them."
        )
    left_out = list(frames.left_out)
    if across == "machines":
        doc.heading("Across machines")
        doc.text("One configuration wherever it was run, listed side by side; nothing here is averaged over machines.")
        doc.add(across_machines(frames, found))
    for group, cells in parts:
        left_out += _chapter(doc, frames, group, cells, found[0], taken, with_reference)
    for group in found[MAX_CHAPTERS:]:
        why = f"other conditions, beyond the {MAX_CHAPTERS} largest groups: " + apart(frames, group, found[0])
        left_out += [LeftOut(str(folder), why) for folder in group.runs["folder"]]
    if with_reference:
        doc.add(reference.reproduced(), level=2)
    doc.add(run_tables.left_out_table(left_out), level=2)
    closing(doc, frames)
    return doc


def require_runs(frames: Frames) -> None:
    """Raises ValueError if no run could be used, with the first reasons."""
    if frames.runs.empty:
        reasons = "; ".join(f"{item.folder}: {item.why}" for item in frames.left_out[:3])
        raise ValueError(f"none of {len(frames.left_out)} runs can be used ({reasons}); finish one or pass --unfinished")


def opening(doc: Document, frames: Frames) -> None:
    """How much there is, and what kind of data it is."""
    runs = frames.runs
    data = ", ".join(dict.fromkeys(runs["data"]))
    doc.text(
        f"{counted(len(runs), 'run')} of {counted(runs['method'].nunique(), 'method')} on {data}; {len(frames.rounds):,} "
        f"target forwards, {len(frames.samples):,} decoded samples. "
        "Every number comes from the stored records of these runs alone."
    )
    standins = sorted({name for name, source in zip(runs["data"], runs["data_source"], strict=True) if source == "standin"})
    if standins:
        doc.warning(f"Stand-in data, written for this project, and not the published sets: {', '.join(standins)}.")
    builtin = runs["target"].astype(str).str.startswith("builtin:")
    if builtin.any():
        doc.warning("Runs on the built-in pair show mechanics, not findings, wherever the data are not code.")


def _chapter(
    doc: Document,
    frames: Frames,
    group: Group,
    cells: Sequence[Comparison],
    main: Group,
    taken: set[str],
    with_reference: bool,
) -> list[LeftOut]:
    """One group's tables and figures; returns what they left out. `taken`: file names in use."""
    conditions = group.conditions
    machine = "; ".join(dict.fromkeys([*group.runs["machine"], *group.noise_floors["machine"]]))
    doc.heading(f"Conditions {group.number}: {machine}, {conditions.get('device')}")
    if group is not main:
        doc.text(f"Apart from conditions {main.number} because of: {apart(frames, group, main)}.")
    doc.add(check_tables.noise_floor_table(group))
    if not cells:  # nothing but the baseline against itself
        return list(group.left_out)
    tables = [
        run_tables.overview(group, cells),
        run_tables.drafts(group, cells),
        *paper_tables.dataset_by_method(group, cells),
        paper_tables.pair_by_dataset(group, cells),
        *(paper_tables.method_by_category(group, cell) for cell in cells if paper_tables.has_categories(cell)),
        run_tables.head_to_head(group, cells),
        paper_tables.lossy_methods(group, cells),
        check_tables.lossless_table(group, cells),
        run_tables.theory_table(frames, group, cells),
        check_tables.energy_table(group, cells),
    ]
    if with_reference:
        tables.append(reference.reference_table(group, cells))
    for table in tables:
        table.name = _free(table.name, group, taken)
        doc.add(table.fold("pair"))
    narrow = paper_tables.in_one_column(group, cells)
    narrow.name = _free(narrow.name, group, taken)
    doc.beside.append(narrow)
    opened = figures_speed.forest if group is main else None  # the report's first picture
    drawings = [draw(frames, group, cells) for draw in GROUP_FIGURES if draw is not opened]
    for cell in cells[:MAX_CELLS]:
        drawings += [draw_cell(frames, group, cell) for draw_cell in CELL_FIGURES]
    for drawing in drawings:
        if drawing is not None:
            drawing.name = _free(drawing.name, group, taken)
            doc.add(drawing)
    if len(cells) > MAX_CELLS:
        doc.text(f"Figures by pair and data set are drawn for the first {MAX_CELLS} of {len(cells)}.")
    return [*group.left_out, *(item for cell in cells for item in cell.left_out)]


def _free(name: str, group: Group, taken: set[str]) -> str:
    """The name, with the group's number where an earlier chapter has it already."""
    chosen = name if name not in taken else f"{name}_conditions_{group.number}"
    taken.add(chosen)
    return chosen


def closing(doc: Document, frames: Frames) -> None:
    """What the runs warned of, and where each comes from."""
    doc.add(run_tables.warnings_table(frames), level=2)
    for note in frames.notes:
        doc.text(note)
    doc.add(run_tables.provenance_table(frames), level=2)

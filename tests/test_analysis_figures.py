"""Every figure: drawn, saved in three forms, readable without colour, and with no label on another."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from analysis_runs import energy_of, write_run

import specbench
from specbench.analysis.derive.conditions import groups
from specbench.analysis.derive.derive import acceptance_by_position, comparisons
from specbench.analysis.derive.theory import theory
from specbench.analysis.read.frames import load
from specbench.analysis.reports import writing
from specbench.analysis.show import figures_time, saving, style
from specbench.analysis.show.figures_speed import against_draft_length
from specbench.analysis.show.style import Drawing, errors, new_figure, styled
from specbench.measure.theory.formulas import speedup_sequential

ALL = {draw.__name__ for draw in (*writing.GROUP_FIGURES, *writing.CELL_FIGURES)}
FEW = {"forest", "timelines", "where_time_goes"}  # points with intervals, spans, hatched bars: what the figures are made of


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drawing]:
    """All figures of a set of runs that supports every one of them, with long labels."""
    folder = tmp_path_factory.mktemp("runs")
    many: dict[str, Any] = {"prompts": range(12), "mean_tokens": 60}
    for i, gamma in enumerate((2, 4, 8)):
        write_run(folder, gamma=gamma, when=i, power=gamma == 4, energy=energy_of(4.0, 6.0), seed=i, **many)
    write_run(folder, gamma=4, draft="draft-small", draft_share=0.1, when=5, **many)
    write_run(folder, "amusd", gamma=3, free=True, when=6, power=True, energy=energy_of(5.0, 6.0), **many)
    write_run(folder, "medusa", claim="lossy", draft_share=0.01, alpha=0.9, when=7, **many)
    write_run(folder, "autoregressive", gamma=0, mode="aa", when=8, **many)
    frames = load([folder])
    group = groups(frames)[0]
    cells = comparisons(frames, group)
    found = {draw.__name__: draw(frames, group, cells) for draw in writing.GROUP_FIGURES}
    found |= {draw.__name__: draw(frames, group, cells[0]) for draw in writing.CELL_FIGURES}
    return {name: drawing for name, drawing in found.items() if drawing is not None}


def overlaps(drawing: Drawing) -> list[str]:
    """Pairs of labels that lie on each other, and legends that lie on axes."""
    with styled():
        renderer = drawing.figure.canvas.get_renderer()  # type: ignore[attr-defined]
        drawing.figure.draw(renderer)
    found = []
    boxes: list[tuple[str, Any]] = []
    for axis in drawing.figure.axes:
        texts = [axis.title, axis._left_title, axis.xaxis.label, axis.yaxis.label]  # type: ignore[attr-defined]
        low, high = sorted(axis.get_xlim()), sorted(axis.get_ylim())
        ticks = [t for t in axis.get_xticklabels() if low[0] <= t.get_position()[0] <= low[1]]
        ticks += [t for t in axis.get_yticklabels() if high[0] <= t.get_position()[1] <= high[1]]
        texts += [*ticks, *axis.texts]
        boxes += [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text() and t.get_visible()]
    for (a, one), (b, other) in itertools.combinations(boxes, 2):
        shrunk = one.padded(-0.75), other.padded(-0.75)
        if shrunk[0].overlaps(shrunk[1]):
            found.append(f"{a!r} on {b!r}")
    for legend in drawing.figure.legends:
        box = legend.get_window_extent(renderer)
        found += ["legend on axes" for axis in drawing.figure.axes if box.overlaps(axis.get_window_extent(renderer))]
        found += [f"legend on {text!r}" for text, other in boxes if box.padded(-1).overlaps(other.padded(-1))]
    return found


def test_the_runs_of_this_test_support_every_figure(drawings: dict[str, Drawing]) -> None:
    assert set(drawings) == ALL


@pytest.mark.parametrize("name", sorted(ALL))
def test_no_labels_overlap(drawings: dict[str, Drawing], name: str) -> None:
    assert overlaps(drawings[name]) == []


def test_overlapping_labels_are_found() -> None:
    with styled():
        figure, axes = new_figure(1, 3)
        for axis in axes.flat:
            axis.plot([0, 1], [0, 1])
            axis.set_xlabel("a label that is much too long for its panel")
    assert overlaps(Drawing("bad", "", figure, pd.DataFrame(), ""))


@pytest.mark.parametrize("name", [*sorted(FEW), *(pytest.param(n, marks=pytest.mark.deep) for n in sorted(ALL - FEW))])
def test_saved_as_vector_picture_and_data(drawings: dict[str, Drawing], name: str, tmp_path: Path) -> None:
    pdf, png, data = drawings[name].save(tmp_path)
    raw = pdf.read_bytes()
    assert raw.startswith(b"%PDF") and b"/Type3" not in raw and b"/CIDFontType2" in raw
    assert b"/Subtype /Image" not in raw  # vector throughout
    assert png.read_bytes().startswith(b"\x89PNG")
    assert len(pd.read_csv(data)) == len(drawings[name].data) > 0
    assert "n = " in drawings[name].caption and "Synthetic CPU" in drawings[name].caption


def test_default_fonts_would_be_found(tmp_path: Path) -> None:
    figure, axes = new_figure()
    axes[0, 0].set_title("text")
    with matplotlib.rc_context({"pdf.fonttype": 3}):
        figure.savefig(tmp_path / "bad.pdf")
    assert b"/Type3" in (tmp_path / "bad.pdf").read_bytes()


def some(title: str) -> Drawing:
    with styled():
        figure, axes = new_figure()
        axes[0, 0].plot([0, 1], [0, 1], label=title, **style.series(0))
        axes[0, 0].set_title(f"{title}: \u2265 1 \u00b1 \u03b1, bold", fontweight="bold")
        style.legend_below(figure)
    return Drawing(title, title, figure, pd.DataFrame({"x": [0, 1]}), "")


def test_several_processes_save_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a figure that the other process cannot save is said: its PDF's place is taken."""
    monkeypatch.setattr(saving, "FEWEST", 2)
    saving.save_all([some(f"figure_{n}") for n in range(4)], tmp_path / "1")
    (tmp_path / "2" / "figure_1.pdf").mkdir(parents=True)
    with pytest.raises(OSError, match=r"figure_1\.pdf"):  # drawings 1 and 3 are the other process's
        saving.save_all([some(f"figure_{n}") for n in range(4)], tmp_path / "2", 2)
    alone, shared = ({path.name: path for path in (tmp_path / name).iterdir()} for name in ("1", "2"))
    assert len(alone) == 3 * 4
    same = {name for name, path in shared.items() if path.is_file() and path.read_bytes() == alone[name].read_bytes()}
    assert same == {name for name in alone if not name.startswith("figure_1.")}


KILLED = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_analysis_figures import some
from specbench.analysis.show import saving
saving.FEWEST = 2
print("begins", flush=True)
while True:
    saving.save_all([some(f"figure_{{n}}") for n in range(4)], Path({folder!r}), 2)
    print("saved", flush=True)
"""


@pytest.mark.slow
def test_a_killed_report_leaves_nothing_on_the_machine(tmp_path: Path) -> None:
    """No process and no file but the font cut for it, killed while two of them save figures; and no named semaphore is used."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code = KILLED.format(path=[str(Path(__file__).parent)], folder=str(tmp_path / "out"))
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    try:
        while process.stdout.readline() != "saved\n":
            pass
        time.sleep(0.3)  # in the middle of the next ones
    finally:
        process.kill()
        process.wait()
    mine, until = f"TMPDIR={temporary}".encode(), time.monotonic() + 60
    while any(_reads(path, mine) for path in Path("/proc").glob("[0-9]*/environ")):  # the other one does its share
        assert time.monotonic() < until, "a process is left"
        time.sleep(0.2)
    assert [path for path in temporary.iterdir() if not path.name.startswith("specbench-fonts-")] == []
    sources = "".join(path.read_text() for path in (Path(writing.__file__).parents[1]).rglob("*.py"))
    assert "multiprocessing" not in sources and "ProcessPool" not in sources


def _reads(path: Path, words: bytes) -> bool:
    try:
        return words in path.read_bytes()
    except OSError:  # it has ended, or is somebody else's
        return False


def test_signs_beyond_the_cut_font_come_from_the_whole_one(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    drawing = some("figure")
    drawing.figure.axes[0].set_xlabel("\u2800 \u0d9e \u2714")  # braille, none, a tick
    drawing.save(tmp_path)
    pdf = (tmp_path / "figure.pdf").read_bytes()
    assert b"specbenchSans" in pdf and b"DejaVuSans" in pdf
    assert [str(w.message) for w in recwarn if "missing" in str(w.message)] != []  # only for the sign that no font has
    assert all("3486" in str(w.message) for w in recwarn if "missing" in str(w.message))


def test_series_are_told_apart_without_colour() -> None:
    looks = [style.series(i) for i in range(style.MAX_SERIES)]
    assert len({look["marker"] for look in looks}) == len({str(look["linestyle"]) for look in looks}) == style.MAX_SERIES


def faces(names: Iterable[str]) -> set[tuple[str, str]]:
    return {(look["color"], look["marker"]) for look in map(style.look, names)}


def test_a_method_has_one_look_wherever_it_stands() -> None:
    shelf = [path.stem for path in (Path(specbench.__path__[0]).parent / "conf" / "method").glob("*.yaml")]
    assert len(shelf) > 10 and len(faces(shelf)) == len(shelf), "append the new one to style.PLACES"
    assert len({colour for colour, _ in faces(style.PLACES[:14])}) == 14, "as long as there are colours"
    assert style.look("autoregressive")["color"] == style.NEUTRAL not in style.METHOD_COLOURS
    assert style.look("speculative") == {"color": "#0072B2", "marker": "o"}, "of every report so far"
    strangers = {f"method_{i}" for i in range(40)}
    assert style.look("method_0") == {"color": "#332288", "marker": "D"}, "by its name, in every process"
    assert len(faces(strangers)) > 30 and not faces(strangers) & faces([*style.PLACES, "autoregressive"])


def test_places_go_round_with_other_markers(monkeypatch: pytest.MonkeyPatch) -> None:
    many = tuple(f"placed_{i}" for i in range(50))
    monkeypatch.setattr(style, "PLACES", many)
    assert len(faces(many)) == 50 and not faces(many) & faces(f"stranger_{i}" for i in range(200))


def test_variants_of_a_method_share_its_look_and_differ_in_lines() -> None:
    found = style.looks(["eagle (k=1)", "speculative", "eagle (k=2)"], ["eagle", "speculative", "eagle"])
    one, other = found["eagle (k=1)"], found["eagle (k=2)"]
    assert all(look[key] == style.look("eagle")[key] for look in (one, other) for key in ("color", "marker"))
    assert one["linestyle"] != other["linestyle"] and one["markerfacecolor"] != other["markerfacecolor"]
    assert style.bar(one["color"]) != style.bar(one["color"], 1)


def test_every_figure_draws_a_method_in_its_colour(drawings: dict[str, Drawing]) -> None:
    """And the other way round: no other method's colour is there."""
    own = {matplotlib.colors.to_hex(style.look(name)["color"]) for name in ("speculative", "amusd", "medusa")}
    foreign = {colour.lower() for colour in style.METHOD_COLOURS} - own
    for name in ("forest", "tokens_over_time", "acceptance", "accepted_lengths", "rollbacks", "energy_against_speed"):
        lines = [line for axis in drawings[name].figure.axes for line in axis.lines]
        bars = [patch for axis in drawings[name].figure.axes for patch in axis.patches]
        used = {matplotlib.colors.to_hex(line.get_color()) for line in lines}
        used |= {matplotlib.colors.to_hex(patch.get_edgecolor()) for patch in bars}
        assert own & used and not foreign & used, name


def luminance(colour: str) -> float:
    """Relative luminance (WCAG)."""
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_neighbouring_colours_differ_in_grey() -> None:
    greys = [luminance(colour) for colour in style.COLOURS[:4]]
    assert all(abs(a - b) > 0.03 for a, b in itertools.combinations(greys, 2))
    assert all(luminance(colour) < 0.6 for colour in (*style.COLOURS, *style.METHOD_COLOURS, style.NEUTRAL))  # on white


def test_intervals_are_drawn(drawings: dict[str, Drawing]) -> None:
    forest = drawings["forest"].data
    assert (forest["low"] < forest["speedup"]).all() and (forest["speedup"] < forest["high"]).all()
    for name in ("acceptance", "accepted_lengths", "rollbacks"):
        data = drawings[name].data.dropna(subset=["low", "high"])
        assert len(data) > 3 and (data["low"] <= data["high"]).all()
    bars = errors([1.0, 2.0], [0.5, np.nan], [1.25, np.nan])
    assert bars.tolist() == [[0.5, 0.0], [0.25, 0.0]]


def test_curve_over_draft_length_is_the_runs_and_the_formulas(tmp_path: Path) -> None:
    for i, gamma in enumerate((2, 4, 8)):
        write_run(tmp_path, gamma=gamma, when=i)
    frames = load([tmp_path])
    group = groups(frames)[0]
    drawing = against_draft_length(frames, group, comparisons(frames, group))
    assert drawing is not None
    assert drawing.data["draft_length"].tolist() == [2, 4, 8]
    assert drawing.data["speedup"].tolist() == frames.runs["speedup"].tolist()
    line = theory(frames).loc[1]
    expected = speedup_sequential(line.alpha, line.gamma, line.t_draft_ms / line.t_ar_ms, line.t_verify_ms / line.t_ar_ms)
    assert drawing.data["theory"].iloc[1] == pytest.approx(expected)


def test_no_curve_from_a_single_draft_length(tmp_path: Path) -> None:
    write_run(tmp_path, gamma=4)
    frames = load([tmp_path])
    group = groups(frames)[0]
    assert against_draft_length(frames, group, comparisons(frames, group)) is None


def test_acceptance_intervals_cover_the_truth(tmp_path: Path) -> None:
    write_run(tmp_path, alpha=0.7, gamma=4, prompts=range(40), mean_tokens=60)
    frame = acceptance_by_position(load([tmp_path]).table(0, "method"))
    truth = 0.7 ** frame["position"]
    assert ((frame["low"] - 0.02 <= truth) & (truth <= frame["high"] + 0.02)).all()
    assert frame["accepted"].is_monotonic_decreasing
    assert (frame["conditional"] - 0.7).abs().max() < 0.05
    assert (frame["eligible"] <= frame["rounds"]).all()


def test_learning_is_shown_where_a_draft_learnt_and_nowhere_else(tmp_path: Path) -> None:
    write_run(tmp_path, gamma=4)

    def drawn(seconds: float) -> tuple[pd.DataFrame, list[str]]:
        frames = load([tmp_path])
        frames.rounds["learn_seconds"] = np.float32(seconds)
        group = groups(frames)[0]
        drawing = figures_time.where_time_goes(frames, group, comparisons(frames, group)[0])
        assert drawing is not None
        return drawing.data, [text.get_text() for text in drawing.figure.legends[0].get_texts()]

    (without, plain), (learnt, named) = drawn(0.0), drawn(1e-5)
    assert "learn_ms" not in without and "learn" not in plain and "learn" in named
    assert (learnt["learn_ms"] > 0).all()
    np.testing.assert_allclose(learnt["learn_ms"] + learnt["other_ms"], without["other_ms"], rtol=1e-3)  # of the same time


def test_names_too_long_for_a_figure_make_it_larger(recwarn: pytest.WarningsRecorder) -> None:
    """A stranger's names may be of any length: without growing, matplotlib gives up the layout and says so."""
    with styled():
        figure, axes = new_figure(2, 2, height=1.5)
        for axis in axes.flat:
            axis.set_ylabel("\n".join(["a name"] * 8))
            axis.set_title("\n".join(["a name"] * 6))
        drawing = Drawing("long", "long", figure, pd.DataFrame(), "")
        drawing.bounds()
    assert not [one for one in recwarn if "constrained_layout" in str(one.message)]

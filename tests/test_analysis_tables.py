"""Tables: what is bold, what is ranked, what the forms say, and that every figure is the estimator's own."""

from __future__ import annotations

import csv
import functools
import io
import re
from pathlib import Path

import pytest
from analysis_runs import energy_of, write_run

from specbench.analysis.derive.conditions import groups
from specbench.analysis.derive.derive import comparisons, restrict
from specbench.analysis.derive.ranking import fastest
from specbench.analysis.read.frames import load
from specbench.analysis.show import check_tables, members, paper_tables, run_tables
from specbench.analysis.show.cells import Cell, Column, Row, mark_best
from specbench.analysis.show.document import Document
from specbench.analysis.show.render import escape_latex, to_html, to_latex, to_markdown
from specbench.analysis.show.table import Table
from specbench.config.say import counted
from specbench.measure import stats

CATEGORIES = ("writing", "math")


def built(root: Path):  # type: ignore[no-untyped-def]
    frames = load([root])
    group = groups(frames)[0]
    return frames, group, comparisons(frames, group)


cached = functools.cache(built)  # the module's own runs: nobody changes them


def row_of(table: Table, label: str) -> Row:
    return next(row for row in table.rows if row.cell("method").text().startswith(label))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for i, data in enumerate(("humaneval", "mt_bench")):
        many = {"prompts": range(16), "categories": CATEGORIES}
        write_run(folder, "speculative", data, when=10 * i + 1, **many, energy=energy_of(4.0, 6.0))
        write_run(folder, "amusd", data, free=True, gamma=3, when=10 * i + 2, seed=2, **many, energy=energy_of(5.0, 6.0))
        write_run(folder, "medusa", data, alpha=0.95, draft_share=0.01, claim="lossy", when=10 * i + 3, **many)
        write_run(folder, "broken", data, alpha=0.95, draft_share=0.01, wrong=True, when=10 * i + 4, **many)
    return folder


def test_categories_are_the_estimators_on_their_prompts(root: Path) -> None:
    frames, group, cells = cached(root)
    table = paper_tables.method_by_category(group, cells[0])
    run = group.runs.index[(group.runs["method"] == "amusd") & (group.runs["data"] == cells[0].data)][0]
    pairs = frames.pairs[run]
    for name in CATEGORIES:
        expected = stats.paired_speedup(restrict(pairs, [c == name for c in pairs.categories])).ratio_of_totals
        assert row_of(table, "amusd").cell(name).number == pytest.approx(expected)
    assert row_of(table, "amusd").cell("overall").number == frames.runs.loc[run, "speedup"]
    assert [c.label for c in table.columns if c.key in CATEGORIES] == ["writing (n=8)", "math (n=8)"]


@pytest.mark.parametrize("key", ["overall", "tokens_per_second", "writing"])
def test_lossy_and_wrong_outputs_are_never_ranked(root: Path, key: str) -> None:
    _, group, cells = cached(root)
    table = paper_tables.method_by_category(group, cells[0])
    fastest = max(table.rows, key=lambda row: row.cell(key).number or 0.0)
    assert not fastest.ranked  # they would have won
    assert [row.cell("method").text() for row in table.rows if row.cell(key).bold] == ["amusd"]
    assert row_of(table, "medusa").section == members.LOSSY_PART
    assert row_of(table, "broken").section == members.WRONG_PART
    assert row_of(table, "broken").cell("lossless").text() == "DIFFERENT"
    assert [row.section for row in table.rows] == sorted(
        [row.section for row in table.rows], key=lambda s: (s != "", "Lossy" in s)
    )


def test_the_same_numbers_with_an_exact_claim_are_ranked(tmp_path: Path) -> None:
    write_run(tmp_path, "speculative", when=1)
    write_run(tmp_path, "medusa", alpha=0.95, draft_share=0.01, when=2)
    _, group, cells = built(tmp_path)
    table = paper_tables.method_by_category(group, cells[0])
    assert row_of(table, "medusa").cell("overall").bold


@pytest.mark.parametrize("said", ["stand-in data, not humaneval: 27 samples", "method: times of one prompt spread by 3 %"])
def test_what_a_warning_makes_unusable_leads_nowhere(tmp_path: Path, said: str) -> None:
    """The twin differs in the warning alone, and leads everywhere."""
    unusable = said.startswith("stand-in")
    many = {"prompts": range(16), "categories": CATEGORIES}
    write_run(tmp_path, "speculative", when=1, **many, energy=energy_of(5.0, 6.0))
    write_run(tmp_path, "pearl", alpha=0.6, when=2, seed=2, **many, energy=energy_of(5.5, 6.0))
    best = {"alpha": 0.95, "draft_share": 0.01, "run_changes": {"warnings": [said]}}
    write_run(tmp_path, "medusa", when=3, seed=3, **many, **best, energy=energy_of(1.0, 6.0))
    _, group, cells = built(tmp_path)
    tables = [paper_tables.method_by_category(group, cells[0]), paper_tables.in_one_column(group, cells)]
    tables += [*paper_tables.dataset_by_method(group, cells), paper_tables.pair_by_dataset(group, cells)]
    tables += [run_tables.overview(group, cells), run_tables.drafts(group, cells), check_tables.energy_table(group, cells)]
    for table in tables:
        leads = {row.cell("method").text().partition(" ")[0] for row in table.rows for c in row.cells.values() if c.bold}
        assert leads == {"speculative" if unusable else "medusa"}, table.name
        assert not unusable or table.rows[-1].cell("method").text().startswith("medusa"), table.name
    assert row_of(run_tables.overview(group, cells), "medusa").section == (members.UNUSABLE_PART if unusable else "")
    against = run_tables.head_to_head(group, cells).rows
    met = [(row.cell("method").text(), row.cell("over").text()) for row in against]
    rest = ("speculative", "pearl")
    assert met == [rest] if unusable else met == [("medusa", "speculative"), ("medusa", "pearl"), rest]
    assert list(fastest(cells[0].runs, 2)["method"]) == (["speculative", "pearl"] if unusable else ["speculative", "medusa"])
    assert list(fastest(cells[0].runs, 3)["method"]) == list(cells[0].runs["method"]), "a place that is free is taken"


def test_lossy_methods_have_a_table_with_their_agreement(tmp_path: Path) -> None:
    write_run(tmp_path, "speculative", when=1)
    write_run(tmp_path, "medusa", claim="lossy", wrong=True, when=2)
    _, group, cells = built(tmp_path)
    table = paper_tables.lossy_methods(group, cells)
    assert [row.cell("method").text() for row in table.rows] == ["medusa"]
    assert table.rows[0].cell("identical_share").number == pytest.approx(7 / 8)
    assert 7 / 8 < (table.rows[0].cell("prefix_share").number or 0) < 1  # the wrong output differs in its last token alone


def test_dataset_by_method_names_the_baseline_once_and_never_averages(root: Path) -> None:
    frames, group, cells = cached(root)
    table = paper_tables.dataset_by_method(group, cells)[0]
    first = [row for row in table.rows if row.cell("method").text() == "autoregressive"]
    assert [row.cell("data").text() for row in first] == ["humaneval", "mt_bench"]
    runs = group.runs[group.runs["data"] == "humaneval"]
    ms = sorted(1e3 / rate for rate in runs["baseline_tokens_per_second"])
    assert first[0].cell("ms_per_token").text() in (f"{ms[0]:.2f} to {ms[-1]:.2f}", f"{ms[0]:.2f}")
    amusd = next(row for row in table.rows if row.cell("method").text() == "amusd")
    run = runs.index[runs["method"] == "amusd"][0]
    assert amusd.cell("ms_per_token").number == pytest.approx(1e3 / frames.runs.loc[run, "tokens_per_second"])
    assert amusd.cell("ms_per_token").bold and amusd.cell("speedup").bold


def test_pair_by_dataset_has_a_column_block_per_data_set(root: Path) -> None:
    _, group, cells = cached(root)
    table = paper_tables.pair_by_dataset(group, cells)
    assert {c.group for c in table.columns} == {"", "humaneval", "mt_bench"}
    assert row_of(table, "amusd").cell("mt_bench speedup").low is not None


def test_captions_say_n_estimator_hardware_and_definitions(root: Path) -> None:
    _, group, cells = cached(root)
    tables = [paper_tables.method_by_category(group, cells[0]), paper_tables.pair_by_dataset(group, cells)]
    tables += [*paper_tables.dataset_by_method(group, cells), run_tables.overview(group, cells)]
    for table in tables:
        for part in ("n = 16 prompts x 2 repeats", "baseline autoregressive", "Synthetic CPU", "ratio of totals", "bootstrap"):
            assert part in table.caption, (table.name, part)
        assert "greedy" in table.caption and "Bold" in table.caption


@pytest.mark.parametrize(("span", "said"), [(1, "1 run"), ("1", "1 run"), (36, "36 runs"), ("1 to 3", "1 to 3 runs")])
def test_one_of_a_kind_is_no_several(span: object, said: str) -> None:
    assert counted(span, "run") == said


def test_energy_table_splits_joules_per_token(root: Path) -> None:
    _, group, cells = cached(root)
    table = check_tables.energy_table(group, cells)
    row = row_of(table, "speculative")
    parts = ("draft", "discarded_draft", "verify", "prefill", "wait")
    assert sum(row.cell(part).number or 0 for part in parts) == pytest.approx(4.0)
    assert row.cell("joules_per_token").bold
    assert not row_of(table, "amusd").cell("joules_per_token").bold
    assert row.cell("saving_percent").number == pytest.approx(100 / 3)


def test_head_to_head_compares_ranked_methods_only(root: Path) -> None:
    _, group, cells = cached(root)
    table = run_tables.head_to_head(group, cells)
    assert {row.cell("method").text() for row in table.rows} == {"amusd"}
    assert {row.cell("over").text() for row in table.rows} == {"speculative"}
    assert {row.cell("told_apart").text() for row in table.rows} == {"yes"}


def test_a_speedup_must_leave_one_and_the_noise_floor(tmp_path: Path) -> None:
    write_run(tmp_path, "speculative", when=1)
    _, group, cells = built(tmp_path)
    assert run_tables.told_from_one(group, cells[0], group.runs.index[0]) == "yes"
    wide = {"alpha": 0.645, "gamma": 8}  # about as fast as its baseline
    write_run(tmp_path, "amusd", when=2, **wide)
    _, group, cells = built(tmp_path)
    slow = group.runs.index[group.runs["method"] == "amusd"][0]
    assert run_tables.told_from_one(group, cells[0], slow) == "no"
    write_run(tmp_path, "autoregressive", gamma=0, mode="aa", when=3)
    _, group, cells = built(tmp_path)
    group.noise_floors[["speedup_low", "speedup_high"]] = (0.5, 9.0)
    assert run_tables.told_from_one(group, cells[0], group.runs.index[0]) == "no: in the noise"
    table = check_tables.noise_floor_table(group)
    assert len(table) == 1 and "itself" in table.caption


# ---------------------------------------------------------------------------------------------------- forms
def example() -> Table:
    rows = [
        Row({"pair": Cell("a_b"), "method": Cell("x 50%"), "speedup": Cell.of(1.7349, 1.6123, 1.8511)}),
        Row({"pair": Cell("a_b"), "method": Cell("y & z"), "speedup": Cell.of(1.5)}),
        Row({"pair": Cell("c"), "method": Cell("w"), "speedup": Cell.of(9.0)}, section="Lossy", ranked=False),
    ]
    mark_best(rows, "speedup")
    columns = [Column("pair", "pair", merge=True, text=True), Column("method", "method", text=True)]
    return Table("t_1", "T", [*columns, Column("speedup", "speed-up", "group")], rows, "α of 5 % and n = 3.", ["a note"])


def test_interval_is_printed_as_papers_print_it() -> None:
    assert Cell.of(1.7349, 1.6123, 1.8511).text() == "1.73 [1.61, 1.85]"
    assert Cell.of(float("nan")).text() == "-"
    assert Cell.of(1.0, float("nan"), 2.0).text() == "1.00"


def test_latex_is_whole_and_escaped() -> None:
    text = to_latex(example())
    assert r"\textbf{1.73 [1.61, 1.85]}" in text
    assert r"\multirow{2}{*}{a\_b}" in text
    assert r"x 50\%" in text and r"y \& z" in text and r"$\alpha$ of 5 \% and n = 3." in text
    assert r"\textbf{9.00}" not in text
    for opened in ("table", "tabular"):
        assert text.count(rf"\begin{{{opened}}}") == text.count(rf"\end{{{opened}}}") == 1
    for rule in (r"\toprule", r"\bottomrule", r"\cmidrule(lr){3-3}"):
        assert rule in text
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    for line in body.splitlines():
        if line.endswith(r"\\") and "multicolumn" not in line:
            assert len(re.findall(r"(?<!\\)&", line)) == 2, line
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def grids(text: str) -> list[tuple[int, list[int]]]:
    """Of each grid in a LaTeX table the columns that it declares, and how many each of its rows fills."""
    found = []
    for spec, body in re.findall(r"\\begin\{tabular\*?\}(?:\{\\columnwidth\})?\{(.*?)\}\n(.*?)\\end\{tabular", text, re.DOTALL):
        declared = re.sub(r"@\{\\extracolsep\{\\fill\}\}?|\{0.32\\\w+\}?", "", spec)
        assert set(declared) <= set("lrp"), spec
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        spans = [sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", row)) for row in rows]
        found.append((len(declared), [1 + len(re.findall(r"(?<!\\)&", r)) + s for r, s in zip(rows, spans, strict=True)]))
    return found


def all_tables(root: Path) -> list[Table]:
    frames, group, cells = cached(root)
    made = [run_tables.overview(group, cells), run_tables.drafts(group, cells), run_tables.head_to_head(group, cells)]
    made += [run_tables.theory_table(frames, group, cells), check_tables.lossless_table(group, cells)]
    made += [
        check_tables.energy_table(group, cells),
        run_tables.warnings_table(frames),
        paper_tables.lossy_methods(group, cells),
    ]
    made += [paper_tables.method_by_category(group, cell) for cell in cells] + paper_tables.dataset_by_method(group, cells)
    return [*made, paper_tables.pair_by_dataset(group, cells), paper_tables.in_one_column(group, cells)]


def test_every_row_of_latex_has_the_columns_that_are_named_whatever_the_names_are(tmp_path: Path) -> None:
    evil = r"a&b_c%$#{}~^\x{y} \\ \input{z}"
    for number, method in enumerate((evil, "speculative")):
        many = {"prompts": range(8), "categories": (evil, "math"), "energy": energy_of(4.0, 6.0), "pair_name": evil}
        write_run(tmp_path, method, evil.replace("/", ""), when=number, **many)  # type: ignore[arg-type]
    write_run(tmp_path, "medusa", claim="lossy", when=3, pair_name=evil)
    for table in all_tables(tmp_path):
        text = to_latex(table)
        for declared, filled in grids(text):
            assert filled and set(filled) == {declared} and declared <= len(table.columns), table.name
        assert sum(declared for declared, _ in grids(text)) >= len(table.columns) and r"\input" not in text
        plain = re.sub(r"\\[{}]", "", text)
        assert plain.count("{") == plain.count("}"), table.name


def test_a_row_with_another_number_of_columns_is_caught() -> None:
    declared, filled = grids(to_latex(example()).replace("x 50", "x & 50"))[0]
    assert set(filled) == {declared, declared + 1}


def test_a_papers_column_has_a_table_of_its_own(root: Path) -> None:
    _, group, cells = cached(root)
    table = paper_tables.in_one_column(group, cells)
    assert [column.label for column in table.columns] == ["method", "speed-up", "emitted", "lossless"]
    assert list(dict.fromkeys(row.section for row in table.rows)) == [
        f"{name}{part}" for name in ("humaneval", "mt_bench") for part in ("", ", not ranked")
    ]
    assert [row.cell("method").text() for row in table.rows if row.cell("speedup").bold] == ["amusd", "amusd"]
    text = to_latex(table)
    assert r"\begin{table}[t]" in text and r"\begin{tabular*}{\columnwidth}{@{\extracolsep{\fill}}lrrl}" in text
    assert "resizebox" not in text and "textwidth" not in text
    table.rows[0].cells["method"] = Cell("speculative (draft_length=8)")
    assert r"p{0.32\columnwidth}" in to_latex(table), "a long name goes on below itself"


def test_latex_defines_words_in_one_file_of_their_own(root: Path, tmp_path: Path) -> None:
    _, group, cells = cached(root)
    doc = Document("some", beside=[paper_tables.in_one_column(group, cells)])
    doc.add(run_tables.overview(group, cells))
    doc.save(tmp_path)
    said = {path.name: path.read_text() for path in (tmp_path / "tables").glob("*.tex")}
    meaning = "ratio of totals of decode tokens/s"
    assert [name for name, text in said.items() if meaning in text] == ["definitions.tex"] and len(said) == 3
    assert (
        said["definitions.tex"].count(r"\item[") == len(doc.words) == 8
        and r"Geom. mean and worst 5 \%" in said["definitions.tex"]
    )


@pytest.mark.parametrize("character", list("\\&%$#_{}~^<>|"))
def test_every_special_character_of_latex_is_escaped(character: str) -> None:
    assert escape_latex(character) != character


def hostile(text: str) -> Table:
    """The text in every place that a table has for one."""
    column = Column("v", text, group=text, text=True)
    return Table("t", text, [column], [Row({"v": Cell(text, bold=True)}, section=text)], text, [text])


def test_no_place_of_a_page_takes_markup() -> None:
    doc = Document("<b>\"&'", [])
    doc.add(hostile("<b>\"&'"))
    doc.warning("<b>\"&'")
    doc.text("<b>\"&'")
    page = doc.html({})
    assert page.count("&lt;b&gt;&#34;&amp;&#39;") == 12 and "<b>&lt;b&gt;" in page
    assert page.count("<b>") == 1, "the bold cell's own"


def test_no_place_of_markdown_takes_markup() -> None:
    doc = Document("a|b*c`<i>_d", [])
    doc.add(hostile("a|b*c`<i>_d\n# no"))
    doc.warning("a|b*c`<i>_d")
    shown = doc.markdown()
    assert shown.count("a\\|b\\*c\\`\\<i>\\_d") == 9 and "a|b" not in shown and "\n# no" not in shown
    assert "snake_case, 0.5 < 1 and [0.9, 1.1]" in to_markdown(hostile("snake_case, 0.5 < 1 and [0.9, 1.1]"))


def test_no_place_of_latex_takes_markup() -> None:
    text = to_latex(hostile(r"\input{x}%"))
    assert text.count(r"\textbackslash{}input\{x\}\%") == 6 and r"\input" not in text


def test_csv_keeps_full_precision_and_the_ends() -> None:
    rows = list(csv.DictReader(io.StringIO(example().to_csv())))
    assert rows[0]["speedup"] == "1.7349"
    assert (rows[0]["speedup_low"], rows[0]["speedup_high"]) == ("1.6123", "1.8511")
    assert rows[1]["speedup_low"] == ""
    assert [row["section"] for row in rows] == ["", "", "Lossy"]


def test_markdown_and_html_show_the_same_cells() -> None:
    table = example()
    markdown, page = to_markdown(table), to_html(table)
    assert "**1.73 [1.61, 1.85]**" in markdown
    assert "<b>1.73" in page and "y &amp; z" in page
    assert markdown.count("\n| ") >= 4


def test_equal_best_are_all_bold_and_a_single_row_is_not() -> None:
    rows = [Row({"v": Cell.of(2.0)}), Row({"v": Cell.of(2.0)}), Row({"v": Cell.of(1.0)})]
    mark_best(rows, "v")
    assert [row.cell("v").bold for row in rows] == [True, True, False]
    alone = [Row({"v": Cell.of(2.0)})]
    mark_best(alone, "v")
    assert not alone[0].cell("v").bold


def test_constant_column_moves_into_the_caption() -> None:
    table = example()
    assert len(table.fold("pair").columns) == 3
    table.rows.pop()
    assert [c.key for c in table.fold("pair").columns] == ["method", "speedup"]
    assert table.caption.startswith("Pair: a_b. ")

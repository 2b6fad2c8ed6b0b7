"""The report, the text, the command line and the notebook, on runs that the tests make."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from analysis_runs import energy_of, write_run
from test_analysis_live import find_chromium, seen

import specbench.analysis as analysis
from specbench.analysis.__main__ import main
from specbench.analysis.derive.conditions import groups
from specbench.analysis.derive.derive import comparisons
from specbench.analysis.reports import experiments, notebook, writing
from specbench.analysis.show import render, style
from specbench.analysis.show.answer import answer
from specbench.analysis.show.cells import Cell, Column, Row
from specbench.analysis.show.document import Document
from specbench.analysis.show.table import Table

SOURCE = Path(notebook.__file__).parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder, "speculative", when=1, power=True, energy=energy_of(4.0, 6.0), source="standin")
    write_run(folder, "amusd", free=True, gamma=3, when=2, source="standin")
    write_run(folder, "amusd", free=True, gamma=3, when=3, source="standin", conditions="c1", gpu="NVIDIA H200")
    write_run(folder, "pearl", when=4, status="failed", source="standin")
    return folder


SCRIPT = """
import sys
import specbench.analysis as analysis
assert not {'pandas', 'matplotlib'} & set(sys.modules), 'heavy imports are lazy'
from specbench.analysis.__main__ import main
runs, out = sys.argv[1:]
print(analysis.compare([runs]))
assert main([runs, '--out', out, '--across', 'machines', '--reference']) == 0
bad = {'torch', 'transformers', 'hydra', 'omegaconf', 'datasets', 'wandb'} & set(sys.modules)
assert not bad, bad
"""


@pytest.fixture(scope="module")
def written(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole report, written by a process of its own that must not have imported torch or the front door's libraries."""
    out = tmp_path_factory.mktemp("report")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(root), str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "amusd" in done.stdout and str(out / "report.html") in done.stdout
    return out


class Page(HTMLParser):
    """What a page would fetch, and whether its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        for name in ("src", "href"):
            value = values.get(name) or ""
            if value and not value.startswith(("data:", "#")):
                self.fetched.append(value)
        self.images += tag == "img"
        if tag in ("script", "link", "iframe"):
            self.fetched.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(text: str) -> Page:
    page = Page()
    page.feed(text)
    return page


def test_html_needs_nothing_beside_it(written: Path) -> None:
    text = (written / "report.html").read_text()
    page = page_of(text)
    assert page.fetched == [] and page.open == []
    assert page.images == len(list((written / "figures").glob("*.png"))) > 10
    assert "url(" not in text and "@import" not in text


def test_a_page_that_fetches_is_caught() -> None:
    assert page_of('<p><img src="https://example.org/x.png"></p>').fetched
    assert page_of('<p><script src="x.js"></script></p>').fetched


def test_every_table_and_figure_has_all_its_forms(written: Path) -> None:
    tables = {path.stem for path in (written / "tables").iterdir()} - {"definitions"}
    assert {
        "in_one_column",
        "overview",
        "pair_by_dataset",
        "theory",
        "lossless",
        "left_out",
        "across_machines",
        "reference",
        "energy",
    } <= tables
    for name in tables:
        assert {path.suffix for path in (written / "tables").glob(f"{name}.*")} == {".tex", ".csv", ".md"}
    for path in (written / "figures").glob("*.png"):
        assert path.with_suffix(".pdf").exists() and path.with_suffix(".csv").exists()


HIDDEN = "[...document.querySelectorAll('.scroll')].map(table => table.scrollWidth - table.clientWidth)"


HEIGHTS = "[...document.querySelectorAll('tbody tr')].map(row => Math.round(row.clientHeight))"


def hidden_pixels(page: str, folder: Path, asked: str = HIDDEN) -> list[int]:
    """Of each table the pixels that a window of 1,100 does not show, or what else is asked, as Chromium lays it out."""
    chromium = find_chromium()
    assert chromium is not None
    (folder / "page.html").write_text(page.replace("</body>", f"<script>document.title = {asked}</script></body>"))
    title = re.search("<title>(.*?)</title>", seen(chromium, (folder / "page.html").as_uri(), folder))
    assert title is not None
    return [int(number) for number in title[1].split(",")]


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason="needs Chromium")
def test_every_table_fits_a_window_of_1100_pixels(written: Path, tmp_path: Path) -> None:
    page = (written / "report.html").read_text()
    found = hidden_pixels(page, tmp_path)
    assert len(found) > 10 and set(found) == {0}
    assert max(hidden_pixels(page.replace("<thead>", "<thead><tr><th>" + "x" * 200 + "</th></tr>", 1), tmp_path)) > 100


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason="needs Chromium")
def test_a_folders_name_takes_the_room_that_there_is(tmp_path: Path) -> None:
    """The twin: a name that no page has room for is broken."""
    for name, is_whole in (("runs/2026-01-01/" + "speculative_humaneval_" * 2, True), ("x" * 300, False)):
        columns = [Column("folder", "run", text=True), Column("started", "started", text=True)]
        rows = [Row({"folder": Cell(text), "started": Cell("2026-01-01 10:00")}) for text in ("short", name)]
        doc = Document("names")
        doc.add(Table("names", "Names", columns, rows, ""))
        short, long = hidden_pixels(doc.save(tmp_path / "report", 1).read_text(), tmp_path, HEIGHTS)
        assert (long < 1.5 * short) == is_whole


def test_markdown_links_what_is_there(written: Path) -> None:
    links = re.findall(r"!\[.*?\]\((.*?)\)", (written / "report.md").read_text())
    assert links and all((written / link).is_file() for link in links)


def test_report_says_what_it_left_out_and_keeps_conditions_apart(written: Path) -> None:
    text = (written / "report.md").read_text()
    assert "status failed: not finished" in text
    assert "2 different sets of conditions" in text
    assert "device cpu against cuda:0" in text
    assert "Stand-in data" in text
    head = text.partition("![")[0]
    assert "device=cuda:0" in head and "device=cpu" in head, "the opening page speaks of all conditions"
    names = {path.stem for path in (written / "tables").iterdir()}
    assert {"overview", "overview_conditions_2"} <= names
    first = (written / "tables" / "overview.csv").read_text()
    assert "speculative" in first and first.count("amusd") == 1


def test_no_data_set_goes_under_its_real_name(written: Path) -> None:
    for path in [*(written / "tables").glob("overview*.csv"), *(written / "tables").glob("dataset_by_method*.csv")]:
        assert "humaneval-standin" in path.read_text() or "data" not in path.read_text().splitlines()[0]
        assert not re.search(r"\bhumaneval\b(?!-standin|_standin)", path.read_text())


# ---------------------------------------------------------------------------------------------------- a stranger's run
EVIL = (
    "=HYPERLINK(1)<script>alert(1)</script>$x^{2}$ \x1b[31mred\x1b[0m",
    '[a](javascript:b)"><img src=x onerror=c> {{7*7}} %}',
    "\\input{/etc/passwd}&lt;b&gt;\n# head\r\n~~~\n| d | \u202etxt",
    "[1em] ![e](http://f/g) `h` ***i*** <!-- [red]j[/red]",
)
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "nav", "div", "a", "p", "b", "span", "figure", "img"),
    *("figcaption", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "dl", "dt", "dd"),
}
LATEX = {
    *("usepackage", "begin", "centering", "small", "caption", "label", "vskip", "resizebox", "textwidth", "toprule", "midrule"),
    *("setlength", "tabcolsep", "columnwidth", "extracolsep", "fill"),
    *("bottomrule", "cmidrule", "multicolumn", "multirow", "textit", "textbf", "end", "par", "footnotesize", "alpha", "gamma"),
    *("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "times", "le", "ge", "pm"),
}


def read_as_html(text: str) -> set[str]:
    """Tags and attributes beside those that a report has, and whatever would be fetched."""
    found = set(page_of(text).fetched)

    class Attributes(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.update({tag} - TAGS, (name for name, _ in attrs if name.startswith("on")))

        def handle_comment(self, data: str) -> None:
            found.add("comment")

    Attributes().feed(text)
    return found


def read_as_markdown(text: str) -> set[str]:
    """What CommonMark with tables finds beside headings, tables, emphasis, lists, quotes, and our own pictures and link."""
    from markdown_it import MarkdownIt

    found = set()
    for token in MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text):
        for one in (token, *(token.children or ())):
            place = str(one.attrGet("src") or one.attrGet("href") or "")
            if one.type in ("image", "link_open") and not place.startswith(("figures/", "#definitions")):
                found.add(f"{one.type} {place}")
            if one.type in ("html_inline", "html_block", "code_inline", "code_block", "fence", "s_open", "hr"):
                found.add(one.type)
            if one.type == "heading_open" and one.markup not in ("#", "##", "###"):
                found.add("underlined heading")
    return found


def read_as_latex(text: str) -> set[str]:
    """Commands beside a table's own, and rows whose first sign belongs to the end of the row before."""
    commands = set(re.findall(r"\\([a-zA-Z]+)", text.replace("\\\\", "  "))) - LATEX
    return commands | set(re.findall(r"\\\\\s*[\[*]", text))


def read_as_formulas(text: str) -> set[str]:
    cells = {cell.strip() for row in csv.reader(io.StringIO(text)) for cell in row}
    return {cell for cell in cells if cell.startswith(("=", "+", "-", "@")) and not re.fullmatch(r"-?[\d.e+-]+", cell)}


def acting(text: str) -> set[str]:
    return {sign for sign in text if sign != "\n" and unicodedata.category(sign) in ("Cc", "Cf", "Cs")}


def test_the_readers_find_what_a_stranger_wrote() -> None:
    """The twins of what follows: unescaped, every one of these strings is read as something."""
    assert "script" in read_as_html(EVIL[0]) and "onerror" in read_as_html(EVIL[1]) and read_as_html("<!-- j -->")
    markdown = set().union(*map(read_as_markdown, (*EVIL, "~~a~~", "    a", "a\n---\nb")))
    assert {"html_inline", "fence", "image http://f/g", "code_inline", "s_open", "code_block", "underlined heading"} <= markdown
    assert read_as_latex(EVIL[2]) == {"input"} and read_as_latex("a \\\\\n" + EVIL[3])
    assert read_as_formulas(EVIL[0]) and not read_as_formulas("-1.5e-05,-,'=x".replace(",-,", ","))
    assert acting(EVIL[0]) == {"\x1b"} and "\u202e" in acting(EVIL[2])


def test_nothing_of_a_strangers_run_is_markup_or_a_formula_anywhere(tmp_path: Path) -> None:
    """In method, data set, models, pair, sample ids, categories, options, machine, command line and warnings."""
    name, data, model, category = EVIL
    for i, method in enumerate((name, category)):
        changes = {"warnings": [data, f"{model} {i}"], "device": category}
        folder = write_run(
            tmp_path / "runs", method, data, target=model, draft=category, pair_name=name, categories=EVIL, when=i,
            wrong=i == 1, options={"flavour": model}, run_changes=changes, prompts=range(4), source="standin" if i else "path",
        )  # fmt: skip
        facts = json.loads((folder / "run.json").read_text())
        facts["provenance"]["machine"]["cpu_model"] = data
        facts["provenance"]["argv"] = ["specbench", *EVIL]
        (folder / "run.json").write_text(json.dumps(facts))
    failed = write_run(tmp_path / "runs", "pearl", when=9, status="failed")
    failed.rename(failed.parent / "<b>[a](b)\x1b[1m")
    out = tmp_path / "out"
    made = writing.document(analysis.load([tmp_path / "runs"]), title=category)
    assert [len(render.save(table, out)) for table in made.beside] == [3] * len(made.beside) and made.beside
    for block in made.blocks:
        if block.table is not None:
            render.save(block.table, out)
        if block.figure is not None:
            block.figure.save(out) if block.figure.name.startswith("speedup_forest") else block.figure.bounds()
            (out / f"{block.figure.name}.csv").write_text(style.csv_text(block.figure.data))
    page, markdown = made.html({b.figure.name: "" for b in made.blocks if b.figure is not None}), made.markdown()
    shown = "".join(analysis.compare([tmp_path / "runs"]))
    assert read_as_html(page) == set() and read_as_markdown(markdown) == set()
    assert {sign for text in (page, markdown, shown) for sign in acting(text)} == set()
    assert page.count("&lt;script&gt;") > 20 and page.count("{{7*7}}") > 20 and "[red]j[/red]" in page
    assert markdown.count("=HYPERLINK") > 20 and shown.count("=HYPERLINK") > 1
    for path in out.iterdir():
        if path.suffix in (".pdf", ".png"):
            continue
        text = path.read_text(encoding="utf-8")
        assert acting(text) == set(), path.name
        found = {".tex": read_as_latex, ".csv": read_as_formulas, ".md": read_as_markdown}[path.suffix](text)
        assert found == set(), path.name
    notebook_page = "".join(render.block_html(block) for block in made.blocks if block.figure is None)
    assert read_as_html(notebook_page) == set()


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    write_run(tmp_path, status="failed")
    with pytest.raises(ValueError, match="none of 1 runs can be used"):
        analysis.report([tmp_path], tmp_path / "out")


@pytest.mark.parametrize(
    "options",
    [
        {"method": "autoregressive", "gamma": 0, "mode": "aa"},
        {"method": "autoregressive", "gamma": 0, "single": True},
        {"method": "speculative", "prompts": [3], "repeats": 1},
        {"method": "speculative", "prompts": [3], "repeats": 1, "mean_tokens": 6},
        {"method": "medusa", "claim": "lossy"},
        {"method": "speculative", "run_changes": {"provenance": {}, "pair": {}, "data": {}}},
    ],
    ids=["noise floor alone", "one arm alone", "one prompt", "a handful of rounds", "lossy alone", "nothing recorded"],
)
def test_meagre_runs_make_a_report_too(tmp_path: Path, options: dict[str, object]) -> None:
    """Every table in its forms, every figure laid out, both pages; how figures are saved is tested with the figures."""
    write_run(tmp_path / "runs", **options)  # type: ignore[arg-type]
    made = writing.document(analysis.load([tmp_path / "runs"]))
    for block in made.blocks:
        if block.table is not None:
            assert len(render.save(block.table, tmp_path / "tables")) == 3
        if block.figure is not None:
            assert block.figure.bounds().width > 1
    pictures = {block.figure.name: "" for block in made.blocks if block.figure is not None}
    assert page_of(made.html(pictures)).fetched == [] and made.markdown()
    assert analysis.compare([tmp_path / "runs"])


# ---------------------------------------------------------------------------------------------------- text
def test_text_fits_a_terminal(tmp_path: Path) -> None:
    options = {"a_very_long_option_name_for_one_method": 123, "another_quite_long_one": "value"}
    write_run(tmp_path, options=options, when=1)
    write_run(tmp_path, options={**options, "a_very_long_option_name_for_one_method": 4}, when=2, wrong=True)
    write_run(tmp_path, "amusd", free=True, conditions="c1", gpu="NVIDIA H200", when=3)
    write_run(tmp_path, status="interrupted", when=4)
    text = analysis.compare([tmp_path])
    assert max(len(line) for line in text.splitlines()) <= 120
    assert "DIFFERENT" in text and "not ranked" in text and "interrupted" in text
    assert "not compared with conditions 1" in text


def test_text_holds_the_numbers_of_the_runs(root: Path) -> None:
    frames = analysis.load([root])
    line = next(line for line in analysis.compare([root]).splitlines() if line.startswith("speculative"))
    row = frames.runs.loc[0]
    assert f"{row['speedup']:.2f} [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]" in line
    assert f"{row['tokens_per_second']:.1f}" in line and f"{row['emitted_per_round']:.2f}" in line


# ---------------------------------------------------------------------------------------------------- the opening page
def opening_of(folder: Path) -> dict[str, str]:
    frames = analysis.load([folder])
    return dict(answer([(group, comparisons(frames, group)) for group in groups(frames)]))


def test_the_answer_speaks_of_all_conditions(tmp_path: Path) -> None:
    for when, temperature in enumerate((0.0, 1.0)):
        write_run(tmp_path, "speculative", alpha=0.8, temperature=temperature, when=10 * when + 1)
        write_run(tmp_path, "amusd", "mt_bench", alpha=0.8, temperature=temperature, when=10 * when + 2)
    said = opening_of(tmp_path)
    places = [f"{name} (temperature={temperature})" for name in ("humaneval", "mt_bench") for temperature in (1.0, 0.0)]
    fastest = [f"{a} and {b} {method}" for a, b, method in ((*places[:2], "speculative"), (*places[2:], "amusd"))]
    assert sorted(said["What was fastest?"].lower().rstrip(".").split("; ")) == [f"on {one}" for one in fastest], "each once"
    for temperature in (0.0, 1.0):
        assert f"On mt_bench (temperature={temperature}): amusd decodes" in said["By how much?"]
    assert "in 4 of 4 runs" in said["How sure?"]
    assert "temperature=1.0" in analysis.compare([tmp_path]).partition("speed-up [95 %]")[0]
    write_run(tmp_path, "speculative", conditions="c9", when=30)
    assert "humaneval (temperature=0.0, conditions " in opening_of(tmp_path)["What was fastest?"]


def test_the_answer_names_what_is_warned_of_by_weight(tmp_path: Path) -> None:
    warnings = {
        1: ["the method is lossy: its text is its own", "stand-in data, not humaneval: 27 samples"],
        2: ["only 8 prompts: intervals over fewer than 50", "method: became 12 % slower over the run (drift)"],
        3: ["method: became 30 % slower over the run (drift)", "another run measured on cpu", "humaneval is a variant of x"],
    }
    for when, said in warnings.items():
        write_run(tmp_path, "speculative", gamma=when, when=when, run_changes={"warnings": said})
    sure = opening_of(tmp_path)["How sure?"]
    assert "unusable (1 of 3 runs): stand-in data" in sure and "doubtful (1 of 3 runs): the method is lossy" in sure
    assert sure.index("unusable") < sure.index("doubtful") and sure.endswith("and 2 more, listed below.")


def test_a_run_that_is_unusable_never_leads(tmp_path: Path) -> None:
    said = {1: [], 2: ["stand-in data, not humaneval: 27 samples"]}
    for when, warnings in said.items():
        name, alpha = ("speculative", 0.8) if when == 1 else ("amusd", 0.95)
        write_run(tmp_path, name, alpha=alpha, when=when, run_changes={"warnings": warnings})
    opening = opening_of(tmp_path)
    assert opening["What was fastest?"] == "On humaneval speculative." and "amusd" not in opening["By how much?"]
    assert "unusable (1 of 2 runs)" in opening["How sure?"]


def test_where_all_are_unusable_nobody_leads(tmp_path: Path) -> None:
    write_run(tmp_path, "speculative", alpha=0.8, when=1, run_changes={"warnings": ["stand-in data, not humaneval: 2"]})
    opening = opening_of(tmp_path)
    assert opening["What was fastest?"].startswith("That cannot be said") and "By how much?" not in opening
    assert "stand-in data" in opening["How sure?"]


def test_a_speed_up_that_the_machines_noise_spans_is_not_distinguishable(tmp_path: Path) -> None:
    folder = write_run(tmp_path, alpha=0.8)
    clear = opening_of(tmp_path)
    assert clear["What was fastest?"] == "On humaneval speculative." and " ?" not in analysis.compare([tmp_path])
    summary = json.loads((folder / "summary.json").read_text())
    summary["speedup"]["ci95_repeats"] = [0.9, 2.0]
    (folder / "summary.json").write_text(json.dumps(summary))
    said = opening_of(tmp_path)
    assert "nothing that is surely faster than autoregressive" in said["What was fastest?"]
    assert "the interval of speculative on humaneval contains 1" in said["How sure?"]
    text = analysis.compare([tmp_path])
    assert re.search(r"\] \?", text) and "? not distinguishable from 1" in text


# ---------------------------------------------------------------------------------------------------- command line
def test_wrong_arguments_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no run folder" in said
    assert main([str(tmp_path), "--reference"]) == 2
    assert "--out" in capsys.readouterr().err


def test_without_out_the_comparison_is_printed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(root)]) == 0
    assert capsys.readouterr().out.strip() == analysis.compare([root]).strip()


# ---------------------------------------------------------------------------------------------------- notebook
def test_the_notebook_is_kept_without_outputs_and_takes_parameters() -> None:
    made = json.loads((SOURCE / notebook.NOTEBOOK).read_text(encoding="utf-8"))
    code = [cell for cell in made["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    (parameters,) = (cell for cell in code if cell["metadata"].get("tags") == ["parameters"])
    given: dict[str, Any] = {}
    exec("".join(parameters["source"]), given)
    assert given["runs"] == ["runs"] and given["across"] is None and given["with_reference"] is False
    assert made["metadata"]["kernelspec"]["name"] == "python3"  # papermill asks for a kernel


@pytest.mark.slow
def test_notebook_runs_on_runs_that_it_is_given(root: Path, tmp_path: Path) -> None:
    for package in ("papermill", "nbconvert", "ipykernel"):
        pytest.importorskip(package, reason=f"{package} is not installed: the extra `report` brings it")
    page = notebook.execute([root], tmp_path, with_reference=True)
    text = page.read_text(encoding="utf-8")
    assert "humaneval-standin" in text and "status failed: not finished" in text
    assert text.count("data:image/png;base64") > 8
    executed = json.loads((tmp_path / notebook.NOTEBOOK).read_text())
    assert all(cell["execution_count"] for cell in executed["cells"] if cell["cell_type"] == "code")


def test_one_prompt_is_one_and_tells_nothing_apart(tmp_path: Path) -> None:
    """The twin: two prompts have an interval."""
    for number, expected, form in (
        (1, "One prompt has no interval.", "n = 1 prompt x"),
        (2, "over 2 prompts.", "n = 2 prompts x"),
    ):
        runs = tmp_path / str(number)
        for when, stop in enumerate(("fixed", "hf")):
            write_run(runs, options={"stop": stop}, prompts=range(number), when=when)
        frames = analysis.load([runs])
        assert expected in opening_of(runs)["How sure?"]
        doc, table = experiments.find("stop").document(frames)
        assert form in table.caption
        warned = [block.text for block in doc.blocks if block.kind == "warning"]
        assert any("nothing is told apart" in text for text in warned) == (number == 1)

"""Tables and documents in the forms that people read: HTML, Markdown and LaTeX, by the templates in `forms/`.

Whatever a template prints is escaped by the rule of its form, what a macro made already excepted: a template cannot forget it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from specbench.analysis.show import captions
from specbench.analysis.show.table import Table
from specbench.config.say import visible

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "α": r"$\alpha$", "γ": r"$\gamma$", "±": r"$\pm$", "×": r"$\times$", "≤": r"$\le$", "≥": r"$\ge$", "–": "--",
}  # fmt: skip
_MARKDOWN = re.compile(  # a sign that would be read, not shown: anywhere, and at the beginning of a line
    r"[\\`*|~$]|<(?=[A-Za-z/!?])|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|&(?=#?\w+;)|:(?=[A-Za-z+]\w*:)|^[#>]|^[+-](?=[\s+-])"
)
_NUMBERED = re.compile(r"^(\d{1,9})([.)])(?=\s)")


def escape_latex(text: str) -> str:
    r"""One line. A bracket or a star that begins a row would belong to the `\\` before it."""
    shown = "".join(_LATEX.get(character, character) for character in visible(_one_line(text)))
    return f"{{{shown[0]}}}{shown[1:]}" if shown.startswith(("[", "*")) else shown


def escape_markdown(text: str) -> str:
    """One line, for prose and for cells of a table."""
    return _NUMBERED.sub(r"\1\\\2", _MARKDOWN.sub(r"\\\g<0>", visible(_one_line(text).strip())))


def escape_html(text: str) -> Markup:
    return escape(visible(_one_line(text)))


def _one_line(text: str) -> str:
    return re.sub(r"[\r\n]+", " ", text)


_MARKS = {  # of LaTeX's template: braces and percent signs belong to LaTeX
    "block_start_string": "<%", "block_end_string": "%>", "variable_start_string": "<<", "variable_end_string": ">>",
    "comment_start_string": "<#", "comment_end_string": "#>",
}  # fmt: skip
_RULES: dict[str, tuple[Callable[[str], str], Any]] = {
    "html": (escape_html, {}), "live": (escape_html, {}), "md": (escape_markdown, {}), "tex": (escape_latex, _MARKS)
}  # fmt: skip


@functools.cache
def form(ending: str) -> Any:
    """The macros of the template of html, live, md or tex."""
    rule, marks = _RULES[ending]

    def printed(value: object) -> Markup:
        return value if isinstance(value, Markup) else Markup(rule(str(value)))

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "forms"), autoescape=True, finalize=printed, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, **marks,
    )  # fmt: skip
    environment.globals |= {"words_in": captions.words_in, "own_words": captions.own_words}
    return environment.get_template(f"{ending}.j2").module


def to_html(table: Table) -> str:
    return str(form("html").table(table))


def block_html(block: Any) -> str:
    """One block of a document, not a figure."""
    return str(form("html").block(block, {}))


def to_markdown(table: Table) -> str:
    """The table, its caption below, and its notes."""
    return str(form("md").table(table))


def to_latex(table: Table) -> str:
    r"""A whole `table` environment; the document needs \usepackage{booktabs,multirow,graphicx}."""
    return str(form("tex").table(table))


def save(table: Table, folder: Path) -> list[Path]:
    """name.tex, name.csv and name.md in the folder; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    forms = {"tex": to_latex(table), "csv": table.to_csv(), "md": to_markdown(table)}
    for ending, text in forms.items():
        (folder / f"{table.name}.{ending}").write_text(text, encoding="utf-8")
    return [folder / f"{table.name}.{ending}" for ending in forms]

"""A table in LaTeX: booktabs rules, multi-row cells, best in bold."""

from __future__ import annotations

from collections.abc import Sequence

from specbench.analysis.show.tables import UNBROKEN, Column, Row, Table, label_spans

PAGE = 105  # characters of small print on a text width

_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "α": r"$\alpha$", "γ": r"$\gamma$", "±": r"$\pm$", "×": r"$\times$", "≤": r"$\le$", "≥": r"$\ge$", "–": "--",
}  # fmt: skip


def escape_latex(text: str) -> str:
    return "".join(_ESCAPES.get(character, character) for character in text)


def to_latex(table: Table) -> str:
    r"""A whole `table` environment; the document needs \usepackage{booktabs,multirow,graphicx}.

    Long texts are broken in a column of their own width; a table that is wider than a page is scaled down to one.
    """
    columns = table.columns
    widths = [max(len(column.label), *(len(row.cell(column.key).text()) for row in table.rows)) for column in columns]
    kinds = [_kind(column, width) for column, width in zip(columns, widths, strict=True)]
    wide = sum(min(width, UNBROKEN) + 2 for width in widths) > PAGE
    lines = [
        r"% needs \usepackage{booktabs,multirow,graphicx}",
        r"\begin{table}[t]",
        r"\centering\small",
        rf"\caption{{{escape_latex(table.caption)}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}",
        r"\vskip 4pt",
        *([r"\resizebox{\textwidth}{!}{%"] if wide else []),
        rf"\begin{{tabular}}{{{''.join(kinds)}}}",
        r"\toprule",
    ]
    if any(c.group for c in columns):
        heads, rules, at = [], [], 1
        for label, span in label_spans([c.group for c in columns]):
            heads.append(rf"\multicolumn{{{span}}}{{c}}{{{escape_latex(label)}}}")
            if label:
                rules.append(rf"\cmidrule(lr){{{at}-{at + span - 1}}}")
            at += span
        lines += [" & ".join(heads) + r" \\", " ".join(rules)]
    lines += [" & ".join(escape_latex(c.label) for c in columns) + r" \\", r"\midrule"]
    lines += _latex_body(table)
    lines += [r"\bottomrule", r"\end{tabular}" + ("}" if wide else "")]
    lines += [rf"\par\footnotesize {escape_latex(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}", ""])


def _kind(column: Column, width: int) -> str:
    if not column.text:
        return "r"
    return "l" if width <= UNBROKEN else r"p{0.32\textwidth}"


def _latex_body(table: Table) -> list[str]:
    columns, rows = table.columns, table.rows
    merged = [c.key for c in columns if c.merge]
    lines: list[str] = []
    for number, row in enumerate(rows):
        new_section = number == 0 or rows[number - 1].section != row.section
        if new_section and row.section:
            lines += [r"\midrule"] if number else []
            lines.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{\textit{{{escape_latex(row.section)}}}}} \\")
        elif number and merged and rows[number - 1].cell(merged[0]).text() != row.cell(merged[0]).text():
            lines.append(r"\midrule")
        entries = []
        for column in columns:
            cell = row.cell(column.key)
            text = escape_latex(cell.text())
            text = rf"\textbf{{{text}}}" if cell.bold else text
            if column.merge:
                span = _merge_span(rows, number, merged[: merged.index(column.key) + 1])
                text = rf"\multirow{{{span}}}{{*}}{{{text}}}" if span > 1 else "" if span == 0 else text
            entries.append(text)
        lines.append(" & ".join(entries) + r" \\")
    return lines


def _merge_span(rows: Sequence[Row], number: int, keys: Sequence[str]) -> int:
    """Rows that a merged cell starting here covers; 0 if it continues one from above."""

    def same(a: Row, b: Row) -> bool:
        return a.section == b.section and all(a.cell(key).text() == b.cell(key).text() for key in keys)

    if number and same(rows[number - 1], rows[number]):
        return 0
    end = number + 1
    while end < len(rows) and same(rows[number], rows[end]):
        end += 1
    return end - number

"""A report as a list of blocks, written as Markdown and as one HTML file that needs nothing beside it (`render`)."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from specbench.analysis.show import render
from specbench.analysis.show.captions import Word, words_in
from specbench.analysis.show.saving import save_all
from specbench.analysis.show.style import Drawing
from specbench.analysis.show.table import Table


@dataclass
class Block:
    """kind: heading, text, warning, answer (a text behind a few words in bold), contents, table or figure."""

    kind: str
    text: str = ""
    head: str = ""
    level: int = 2
    table: Table | None = None
    figure: Drawing | None = None


@dataclass
class Document:
    """Blocks in order; `add` skips what is None or empty, so that a report is written as if everything were there."""

    title: str
    blocks: list[Block] = field(default_factory=list)
    beside: list[Table] = field(default_factory=list)  # written with the others, not shown

    def heading(self, text: str, level: int = 2) -> None:
        self.blocks.append(Block("heading", text, level=level))

    def text(self, text: str) -> None:
        self.blocks.append(Block("text", text))

    def warning(self, text: str) -> None:
        self.blocks.append(Block("warning", text))

    def answer(self, head: str, text: str) -> None:
        self.blocks.append(Block("answer", text, head))

    def contents(self) -> None:
        """Where the page lists its headings; without it, at the beginning."""
        self.blocks.append(Block("contents"))

    @property
    def words(self) -> list[Word]:
        """What the captions define, each word once."""
        captions = [item.caption for block in self.blocks if (item := block.table or block.figure) is not None]
        captions += [table.caption for table in self.beside]
        return list(dict.fromkeys(word for caption in captions for word in words_in(caption)))

    def add(self, item: Table | Drawing | None, level: int = 3) -> None:
        """level: of its heading; 0 for a figure without one."""
        if isinstance(item, Table) and len(item):
            self.blocks += [Block("heading", item.title, level=level), Block("table", table=item)]
        elif isinstance(item, Drawing):
            self.blocks += [Block("heading", item.title, level=level)] if level else []
            self.blocks.append(Block("figure", figure=item))

    def save(self, folder: Path, workers: int = 1) -> Path:
        """report.md, report.html, tables/ and figures/ in the folder; returns the path of report.html.

        workers: processes that save figures, see `saving.save_all`.
        """
        for table in [*(block.table for block in self.blocks if block.table is not None), *self.beside]:
            render.save(table, folder / "tables")
        if self.words:
            (folder / "tables" / "definitions.tex").write_text(render.form("tex").definitions(self.words), encoding="utf-8")
        drawings = [block.figure for block in self.blocks if block.figure is not None]
        save_all(drawings, folder / "figures", workers)
        (folder / "report.md").write_text(self.markdown(), encoding="utf-8")
        pictures = {d.name: base64.b64encode((folder / "figures" / f"{d.name}.png").read_bytes()).decode() for d in drawings}
        path = folder / "report.html"
        path.write_text(self.html(pictures), encoding="utf-8")
        return path

    def markdown(self) -> str:
        return str(render.form("md").document(self))

    def html(self, pictures: Mapping[str, str]) -> str:
        """One page. pictures: each figure's PNG by its name, in base64."""
        return str(render.form("html").document(self, pictures))

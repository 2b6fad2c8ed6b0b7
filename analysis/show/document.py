"""A report as a list of blocks, written as Markdown and as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass, field
from pathlib import Path

from specbench.analysis.show.style import Drawing, save_all
from specbench.analysis.show.tables import Table, to_html, to_markdown

CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 1240px; margin: 0 auto; padding: 24px 28px 80px; }
h1 { font-size: 1.7em; margin: .2em 0 .4em; }
h2 { font-size: 1.3em; margin: 2.2em 0 .5em; border-bottom: 1px solid #ccc; }
h3 { font-size: 1.05em; margin: 1.8em 0 .5em; }
p { max-width: 62em; }
nav { font-size: .9em; columns: 3; margin: 1em 0 2em; }
nav a { color: #0b5394; text-decoration: none; }
nav div { break-inside: avoid; }
nav .sub { padding-left: 1.2em; }
.scroll { overflow-x: auto; margin: .6em 0; }
table { border-collapse: collapse; font-size: .84em; font-variant-numeric: tabular-nums; border-top: 2px solid #222;
        border-bottom: 2px solid #222; }
th, td { padding: 3px 8px; vertical-align: top; }
thead tr:last-child th { border-bottom: 1px solid #222; }
th { font-weight: 600; text-align: left; white-space: nowrap; }
th.n, td.n { text-align: right; white-space: nowrap; }
td.t { white-space: nowrap; }
td.w { min-width: 16em; max-width: 26em; overflow-wrap: break-word; }
th.group { text-align: center; border-bottom: 1px solid #999; }
tbody tr:hover { background: #f4f7fa; }
td.section { font-style: italic; border-top: 1px solid #999; padding-top: 6px; }
.ci { color: #555; font-size: .93em; }
.caption { color: #444; font-size: .85em; max-width: 72em; margin-top: .3em; }
figure { margin: .8em 0 0; }
figure img { max-width: 100%; height: auto; }
.warn { background: #fff6df; border-left: 4px solid #d9a400; padding: 6px 12px; margin: .5em 0; }
@media print { nav { display: none } .scroll { overflow: visible } }
"""


@dataclass
class Block:
    """kind: heading, text, warning, table or figure."""

    kind: str
    text: str = ""
    level: int = 2
    table: Table | None = None
    figure: Drawing | None = None


@dataclass
class Document:
    """Blocks in order; `add` skips what is None or empty, so that a report is written as if everything were there."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    def heading(self, text: str, level: int = 2) -> None:
        self.blocks.append(Block("heading", text, level))

    def text(self, text: str) -> None:
        self.blocks.append(Block("text", text))

    def warning(self, text: str) -> None:
        self.blocks.append(Block("warning", text))

    def add(self, item: Table | Drawing | None, level: int = 3) -> None:
        if isinstance(item, Table) and len(item):
            self.blocks += [Block("heading", item.title, level), Block("table", table=item)]
        elif isinstance(item, Drawing):
            self.blocks += [Block("heading", item.title, level), Block("figure", figure=item)]

    def save(self, folder: Path, workers: int = 1) -> Path:
        """report.md, report.html, tables/ and figures/ in the folder; returns the path of report.html.

        workers: processes that save figures, see `style.save_all`.
        """
        for block in self.blocks:
            if block.table is not None:
                block.table.save(folder / "tables")
        save_all([block.figure for block in self.blocks if block.figure is not None], folder / "figures", workers)
        (folder / "report.md").write_text(self.markdown(), encoding="utf-8")
        path = folder / "report.html"
        path.write_text(self.html(folder / "figures"), encoding="utf-8")
        return path

    def markdown(self) -> str:
        parts = [f"# {self.title}"]
        for block in self.blocks:
            if block.kind == "heading":
                parts.append(f"{'#' * block.level} {block.text}")
            elif block.kind == "warning":
                parts.append(f"> **Note:** {block.text}")
            elif block.table is not None:
                parts.append(to_markdown(block.table).rstrip())
            elif block.figure is not None:
                name = block.figure.name
                parts.append(f"![{block.figure.title}](figures/{name}.png)\n\n*{block.figure.caption}*")
            else:
                parts.append(block.text)
        return "\n\n".join(parts) + "\n"

    def html(self, figures: Path) -> str:
        """One file: styles and pictures inside, no script, nothing fetched."""
        contents, body = [], []
        for number, block in enumerate(self.blocks):
            if block.kind == "heading":
                text = html.escape(block.text)
                sub = ' class="sub"' if block.level > 2 else ""
                contents.append(f'<div{sub}><a href="#b{number}">{text}</a></div>')
                body.append(f'<h{block.level} id="b{number}">{text}</h{block.level}>')
            elif block.kind == "warning":
                body.append(f'<p class="warn">{html.escape(block.text)}</p>')
            elif block.table is not None:
                body.append(to_html(block.table))
            elif block.figure is not None:
                body.append(_figure(block.figure, figures))
            else:
                body.append(f"<p>{html.escape(block.text)}</p>")
        title = html.escape(self.title)
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        head += f"<title>{title}</title><style>{CSS}</style>"
        page = f"<h1>{title}</h1><nav>{''.join(contents)}</nav>{''.join(body)}"
        return f'<!doctype html><html lang="en"><head>{head}</head><body>{page}</body></html>\n'


def _figure(drawing: Drawing, figures: Path) -> str:
    data = base64.b64encode((figures / f"{drawing.name}.png").read_bytes()).decode()
    width, _ = drawing.figure.get_size_inches()
    picture = f'<img src="data:image/png;base64,{data}" alt="{html.escape(drawing.title)}" style="width:{110 * width:.0f}px">'
    return f'<figure>{picture}<figcaption class="caption">{html.escape(drawing.caption)}</figcaption></figure>'

"""The notebook report.ipynb: built from the script notebook_cells.py, executed by papermill, rendered to HTML.

The script is what people edit and review; `python -m specbench.analysis.reports.notebook` writes the notebook from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

SCRIPT, NOTEBOOK = "notebook_cells.py", "report.ipynb"
_MARK = re.compile(r"^# %%( \[markdown\])?(?: tags=(\[.*\]))?$", re.MULTILINE)


def cells_of(script: str) -> list[dict[str, Any]]:
    """The cells of a script in the percent format: `# %%`, `# %% [markdown]`, `# %% tags=["parameters"]`."""
    _, *parts = _MARK.split(script)
    cells: list[dict[str, Any]] = []
    for is_markdown, tags, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        metadata = {"tags": json.loads(tags)} if tags else {}
        kind = "markdown" if is_markdown else "code"
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": metadata}
        text = text.strip("\n")
        if is_markdown:
            text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.splitlines())
        else:
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell | {"source": text.splitlines(keepends=True)})
    return cells


def build(script: str) -> str:
    """The notebook as JSON text, without outputs. The kernel's name is in it: papermill asks for one."""
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return json.dumps({"cells": cells_of(script), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


def execute(runs: Iterable[str | Path], out: Path, **parameters: Any) -> Path:
    """Run the notebook on the runs; writes out/report.ipynb and out/notebook.html and returns the latter.

    Raises ImportError naming the extra that is missing, and papermill's error where a cell fails.
    """
    try:
        import nbformat
        import papermill
        from nbconvert import HTMLExporter
    except ImportError as error:
        raise ImportError(
            f"{error.name}: the notebook needs the extra `report` (pip install 'specbench-sd[report]')"
        ) from error
    out.mkdir(parents=True, exist_ok=True)
    executed = out / NOTEBOOK
    given = {"runs": [str(Path(run).resolve()) for run in runs], **parameters}
    with as_file(files("specbench.analysis") / "reports" / NOTEBOOK) as source:
        papermill.execute_notebook(source, executed, parameters=given, kernel_name="python3", progress_bar=False)
    exporter = HTMLExporter(exclude_input=True, require_js_url="", mathjax_url="", jquery_url="")  # no network
    body, _ = exporter.from_notebook_node(nbformat.read(executed, as_version=4))
    page = out / "notebook.html"
    page.write_text(body, encoding="utf-8")
    return page


def main() -> None:
    """Rewrite report.ipynb from the script, beside this file."""
    here = Path(__file__).parent
    (here / NOTEBOOK).write_text(build((here / SCRIPT).read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

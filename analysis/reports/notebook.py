"""The notebook report.ipynb, kept without outputs: executed by papermill, rendered to HTML."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

NOTEBOOK = "report.ipynb"


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

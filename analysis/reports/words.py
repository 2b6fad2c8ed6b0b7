"""What an experiment says: titles, captions, columns and sentences, from the YAML beside its Python file.

    title, heading, nothing    of its `Study`
    shared                     texts that others quote by name: {{ words }}
    tables, figures            by file name: title, caption; of tables also columns
    sentences                  by name

Texts are Jinja templates over `shared`, `definitions(name, ...)` (`captions`) and what the caller gives; an unknown name is an
error. A column is the fields of `table.Column`; its `of` is a dotted path into the row's item, its key where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from specbench.analysis.reports.study import Chapter
from specbench.analysis.show import captions
from specbench.analysis.show.cells import Column
from specbench.analysis.show.style import Drawing
from specbench.analysis.show.table import Table


def part(item: Any, path: str) -> Any:
    """What stands at a dotted path of attributes and keys; None behind a missing one."""
    for name in path.split("."):
        item = item.get(name) if isinstance(item, Mapping) else None if item is None else getattr(item, name)
    return item


def reader(path: str) -> Callable[[Any], Any]:
    """`part` of any item, at a fixed path."""
    return lambda item: part(item, path)


class Words:
    """The words of the experiment whose module is named `module`."""

    def __init__(self, module: str):
        package, _, name = module.rpartition(".")
        said = yaml.safe_load((files(package) / f"{name}.yaml").read_text(encoding="utf-8"))
        self.study = {key: said.pop(key) for key in ("title", "heading", "nothing") if key in said}
        self.tables, self.figures = said.pop("tables"), said.pop("figures", {})
        self.sentences: dict[str, str] = said.pop("sentences", {})
        self._environment = Environment(undefined=StrictUndefined)
        self._environment.globals["definitions"] = captions.definitions
        for key, text in said.pop("shared", {}).items():
            self._environment.globals[key] = text if isinstance(text, dict) else self._filled(text, {})
        assert not said, f"{name}.yaml: nothing reads {', '.join(said)}"

    def __getitem__(self, shared: str) -> Any:
        """A shared text or mapping."""
        return self._environment.globals[shared]

    def say(self, sentence: str, **values: Any) -> str:
        """A sentence with its values filled in."""
        return self._filled(self.sentences[sentence], values)

    def columns(self, table: str, of: Mapping[str, Callable[[Any], Any]] | None = None) -> list[Column]:
        """A table's columns. of: for columns that a path cannot say, what fills them by key."""
        made = []
        for column in self.tables[table]["columns"]:
            path = column.get("of", column["key"])
            made.append(Column(**{**column, "of": (of or {}).get(column["key"]) or reader(path)}))
        return made

    def table(
        self,
        chapter: Chapter[Any],
        name: str,
        notes: Iterable[str] = (),
        items: Any = None,
        of: Mapping[str, Callable[[Any], Any]] | None = None,
        keep_empty: bool = False,
        **values: Any,
    ) -> Table:
        """A table of the chapter's cases, or of `items`; columns in which none has anything are left out or kept.

        of: see `columns`; values: what its caption takes.
        """
        own = self.tables[name]
        caption = self._filled(own["caption"], values)
        made = chapter.table(name, own["title"], self.columns(name, of), caption, notes, items)
        return made if keep_empty else made.drop_empty_columns()

    def drawing(self, name: str, figure: Figure, data: pd.DataFrame, **values: Any) -> Drawing:
        """A figure with its words. values: what its caption takes."""
        own = self.figures[name]
        return Drawing(name, own["title"], figure, data, self._filled(own["caption"], values))

    def _filled(self, text: str, values: Mapping[str, Any]) -> str:
        return self._environment.from_string(text).render(values)

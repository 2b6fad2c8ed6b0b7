"""Frames as CSV: where no text of a stranger's run is a formula or a terminal's escape."""

from __future__ import annotations

from typing import Any

import pandas as pd

from specbench.config.say import visible

_FORMULA = ("=", "+", "-", "@")


def csv_text(frame: pd.DataFrame) -> str:
    """The frame as CSV in which no text is a formula: one that begins as one gets an apostrophe, which spreadsheets hide.

    Signs that act (line breaks, a terminal's escapes) are written as their escapes.
    """

    def safe(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        shown = visible(value)
        return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown

    texts = frame.select_dtypes(exclude="number").columns
    return frame.assign(**{name: frame[name].map(safe) for name in texts}).rename(columns=safe).to_csv(index=False)

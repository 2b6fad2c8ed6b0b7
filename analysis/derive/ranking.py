"""Which runs a report may rank, and which of them a figure has room for."""

from __future__ import annotations

import numpy as np
import pandas as pd

LOSSY = "lossy"


def is_lossy(row: pd.Series) -> bool:
    return bool(row["claim"] == LOSSY)


def keeps_text(row: pd.Series) -> bool:
    """Whether the output may be called the target's."""
    return not is_lossy(row) and row["verdict"] != "different"


def is_ranked(row: pd.Series) -> bool:
    """A number competes only where the output may be called the target's and no warning makes the number unusable: all that
    leads, is bold, is called best or stands against another asks here."""
    return keeps_text(row) and not row["unusable"]


def fastest(runs: pd.DataFrame, limit: int) -> pd.DataFrame:
    """So many of these rows of `Group.runs` where a figure has no room for all: what is ranked first, then by speed-up; in the
    order in which they were."""
    ranked = np.array([is_ranked(row) for _, row in runs.iterrows()], dtype=bool)
    speeds = runs["speedup"].fillna(-np.inf).to_numpy()
    return runs.iloc[np.sort(np.lexsort((-speeds, ~ranked))[:limit])]

"""Run folders as a run leaves them, from synthetic records; and the configurations of such runs."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

from fake_records import paired_run

from specbench.config.compose import compose
from specbench.config.schema import RunConfig, as_dict
from specbench.measure.records.store import RunStore
from specbench.measure.summary import build_summary

BUILTIN = ("pair=builtin", "engine=eager")  # not the defaults: small, and the reference


def composed(*overrides: str) -> RunConfig:
    """A configuration to do with as one likes; a command line is composed once a session."""
    return copy.deepcopy(_composed(overrides))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> RunConfig:
    return compose([*BUILTIN, *overrides])


def finished_run(root: Path, config: RunConfig | None = None, num_prompts: int = 6, **facts: Any) -> Path:
    """A run with status success: records of both arms, three repeats, and the summary of them."""
    samples, rounds = paired_run(num_prompts)
    store = RunStore.create(root, "speculative", "humaneval", as_dict(config or RunConfig()))
    store.write_run({"baseline": "autoregressive", "warnings": [], **facts})
    with store:
        for record in samples:
            store.append(record, rounds[record.key])
        store.set_status("success")
        store.write_summary(build_summary({**store.run, "run_folder": str(store.folder)}, samples, rounds, resamples=200))
    return store.folder

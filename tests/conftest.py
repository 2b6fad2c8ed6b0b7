"""Conditions of every test: no network, one CPU thread per process, GPU tests only where there is a GPU."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import pytest

# Before any library reads them, and inherited by every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests take no timings: they wait for no measurement that goes on beside them, and hold none up.
os.environ.setdefault("SPECBENCH_LOCKS", tempfile.mkdtemp(prefix="specbench-test-locks-"))


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A `miniature.Miniature`: a target and a draft, trained for a moment; whoever tests training or its products shares it."""
    from miniature import make

    return make(tmp_path_factory.mktemp("miniature"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` on a machine without one."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an accelerator"))

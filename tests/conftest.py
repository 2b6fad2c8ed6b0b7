"""Conditions of every test: no network, one CPU thread per process, GPU tests only where there is a GPU."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from typing import Any

import pytest

# Before any library reads them, and inherited by every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests take no timings: they wait for no measurement that goes on beside them, and hold none up.
if "SPECBENCH_LOCKS" not in os.environ:
    os.environ["SPECBENCH_LOCKS"] = tempfile.mkdtemp(prefix="specbench-test-locks-")
    atexit.register(shutil.rmtree, os.environ["SPECBENCH_LOCKS"], ignore_errors=True)  # in the process that made it alone


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A `miniature.Miniature`: a target and a draft, trained for a moment; whoever tests training or its products shares it."""
    from miniature import make

    return make(tmp_path_factory.mktemp("miniature"))


BUDGET_SECONDS = 5.0


def over_budget(config: pytest.Config) -> list[Any]:
    """Reports of unmarked tests that took longer than they may, the longest first."""
    stats = config.pluginmanager.get_plugin("terminalreporter").stats  # type: ignore[union-attr]
    reports = [r for kind in ("passed", "failed") for r in stats.get(kind, ()) if r.when == "call"]
    over = [r for r in reports if r.duration > BUDGET_SECONDS and not {"slow", "deep", "gpu"} & set(r.keywords)]
    return sorted(over, key=lambda report: -report.duration)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name the tests that cost everybody too much."""
    for report in over_budget(config):
        terminalreporter.write_line(f"over {BUDGET_SECONDS:g} s: {report.duration:.1f} s {report.nodeid}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """SPECBENCH_TEST_BUDGET=1, on an idle machine, makes them failures."""
    controller = not hasattr(session.config, "workerinput")  # with several processes only one sees all reports
    if controller and os.environ.get("SPECBENCH_TEST_BUDGET") == "1" and over_budget(session.config):
        session.exitstatus = 1


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the server that `preloaded` forks from, where it will be wanted: it imports while other tests run."""
    modules = {item.module for item in session.items if isinstance(item, pytest.Function)}
    if any({"preloaded", "Started", "fork_workers"} & set(vars(module)) for module in modules):
        from multiprocessing import forkserver

        forkserver.ensure_running()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` on a machine without one."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an accelerator"))

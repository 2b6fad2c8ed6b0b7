"""What a method needs of its target is checked before a folder exists."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from specbench.config.compose import compose
from specbench.config.options import ConfigError
from specbench.method import EMPTY, DraftTree, Needs
from specbench.run.run import run


def test_a_target_that_cannot_do_it_is_refused_before_a_folder_exists(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "gpt2", tiny.module("gpt2"))
    config = compose(
        ["method=layerskip", f"pair.target={folder}", "pair.draft=null", "data.limit=1", f"runs_dir={tmp_path / 'runs'}"]
    )
    with pytest.raises(ConfigError, match=r"pair\.target=.*gpt2.*cannot give layers"):
        run(config)
    assert not (tmp_path / "runs").exists()


def test_needs_add_up() -> None:
    both = Needs(draft="local", taps=(-1,), scope="session") | Needs(taps=(-1, 2), riders=True)
    assert both == Needs(draft="local", taps=(-1, 2), riders=True, scope="session")
    assert both.of_target == {"taps", "riders"}
    with pytest.raises(AssertionError, match="one draft"):
        Needs(draft="local") | Needs(draft="worker")


def test_nobody_writes_into_the_shared_empty_draft() -> None:
    with pytest.raises(AttributeError, match="EMPTY is shared"):
        EMPTY.num_forwards = 1
    own = DraftTree([])
    own.num_forwards = 1
    assert EMPTY.num_forwards == 0 and EMPTY.tokens == []

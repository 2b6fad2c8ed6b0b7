"""A miniature pair, made by the training command's own code: trained once a session (the fixture `miniature`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from specbench.config.schema import PairConfig
from specbench.train.__main__ import run
from specbench.train.settings import PartSettings, Settings, TrainSettings

FUNCTION = '''def area_{n}(width: float, height: float) -> float:
    """Return the area of rectangle number {n}.

    The area is the product of width and height; a negative side is an error, and the message says which side it was. A side
    of zero is allowed and gives an area of zero, so that callers need not treat empty rectangles {n} in a special way.
    """
    if width < 0 or height < 0:
        raise ValueError("side {n} is negative")
    return width * height * {n}


'''
TINY = {
    "width": 32,
    "attention_heads": 2,
    "feed_forward": 48,
    "vocab_size": 300,
    "max_positions": 4096,
    "rows": 2,
    "length": 64,
}
TINY |= {"threads": 1, "compile": "off", "autocast": False, "generate_rows": 4, "pool_rows": 8, "new_tokens": 16}


@dataclass(frozen=True)
class Miniature:
    """source: texts of all splits. work: corpus, tokens, checkpoints, for later parts too. pair: target and draft."""

    source: Path
    work: Path
    pair: Path


def settings_for(part: str, source: Path, work: Path, out: Path, **train: object) -> Settings:
    options = TINY | {"source": str(source), "source_licence": "MIT", "work": str(work), "out": str(out)} | train
    parts = {
        "target": PartSettings(kind="target", layers=3, tokens=2_048, folder="target"),
        "draft": PartSettings(kind="draft", layers=1, tokens=1_024, folder="draft"),
    }
    target = str(out.parent / "target")
    return Settings(part=part, pair=PairConfig(target=target, draft=None), train=TrainSettings(**options), parts=parts)  # type: ignore[arg-type]


def make(folder: Path) -> Miniature:
    """Write the texts, train both models."""
    made = Miniature(folder / "source", folder / "work", folder / "pair")
    made.source.mkdir()
    for n in range(120):
        (made.source / f"module_{n}.py").write_text("".join(FUNCTION.format(n=10 * n + i) for i in range(3)))
        notes = f"# Notes {n}\n\n" + f"Rectangle {n} has an area and a long description. " * 8
        (made.source / f"notes_{n}.md").write_text(notes)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv("SPECBENCH_DATA", raising=False)  # the overlap with evaluation sets has tests of its own
        for part in ("target", "draft"):
            assert run(settings_for(part, made.source, made.work, made.pair / part))["complete"]
    return made

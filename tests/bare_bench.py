"""The checks' bench on bare modules: some ten times faster than on the smallest models of transformers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import tiny

from specbench.check import Bench
from specbench.check.tiny import VOCAB_SIZE
from specbench.config.specs import PairSpec
from specbench.engine.model import Model
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw


@functools.cache
def bare_pair() -> tuple[Model, Model]:
    return tiny.bare_pair(VOCAB_SIZE)


class BareBench(Bench):
    """Raises ConfigError, when the method is opened, for one that asks more of a target or draft."""

    def __init__(self, node: Mapping[str, Any], pair: PairSpec, prompts: Any, allow_targets: Sequence[str] = ()):
        super().__init__(node, pair, prompts, allow_targets)
        self.target, self._draft = bare_pair()

    def runtime(self, law: SamplingLaw) -> Runtime:
        around = super().runtime(law)
        around.load_draft = lambda: bare_pair()[1]
        around.load_stage = lambda name: (name, lambda: bare_pair()[1])
        if self.needs.draft != "local":
            around.draft = None
        return around

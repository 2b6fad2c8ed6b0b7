"""PipeSpec: a chain of models, each speculating for the next (McDanel et al. 2505.01572, ACL Findings 2025).

Every stage runs in a process of its own and never waits for a round: it verifies what the stage below has drafted, adds a token
of its own and passes both on; a contradiction travels down the chain (`parts.schedules.free_running.relay`). With one stage
this is AMUSD. The paper charges a device to every stage: here `run.json` says how many processes there are.

What deviates, as in `amusd`: tokens and no pairs of counters say what a draft stands on, so that a stage in the middle, that
may take back what it said, costs work and never correctness; look-ahead is bounded; EOS and length limit are honoured by all.
At temperature > 0 (the authors' code has none) every stage draws with the target's noise, so the output equals autoregressive
sampling token for token. All stages run on the draft's device: on fewer cores or devices than processes they take turns, which
the run's warnings say, and is no basis for speed.
"""

from __future__ import annotations

from collections.abc import Sequence

from specbench.method import ConfigError, Method, Rule, Stop
from specbench.parts.schedules.free_running.pipeline import Pipeline

DRAFT, MIDDLE = "draft", "middle"


class PipeSpec(Method):
    """stages: models below the target, the smallest first: names as a pair's, `draft` (the pair's own), `target:<n>` (its first
    n layers) or `middle` (a model between draft and target: the built-in pair's large draft, else half of the target's layers);
    null: draft and middle.

    draft_length: drafts that every stage waits for (published: 2; 0: none waits). max_lookahead: of a stage ahead of the next.
    stale: plain | wait (see `Verifier`). draft_cores: CPU cores of each stage. stop: of the first stage.
    rule: greedy_match | sample_match; null = by temperature. Raises ConfigError for values out of range.
    """

    def __init__(
        self,
        *,
        stages: Sequence[str] | None = None,
        draft_length: int = 2,
        max_lookahead: int = 16,
        stale: str = "plain",
        draft_cores: int = 1,
        stop: str | Stop | None = None,
        rule: str | Rule | None = None,
    ):
        named = [DRAFT, MIDDLE] if stages is None else stages
        if isinstance(named, str) or not isinstance(named, Sequence) or not named or not all(isinstance(n, str) for n in named):
            raise ConfigError("method.stages", stages, "give a list of names, smallest model first, or null: [draft, middle]")
        twice = next((name for name in named if named.count(name) > 1), None)
        if twice is not None:
            raise ConfigError("method.stages", list(named), f"{twice} stands there twice: name each model once")
        schedule = Pipeline(named, draft_length, max_lookahead, stale, draft_cores, stop)
        super().__init__(schedule=schedule, rule=rule, rules=("greedy_match", "sample_match"), draft_length=draft_length)

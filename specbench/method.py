"""The contracts that method plugins implement.

A method is one file in `methods/` and one YAML in `conf/method/`: a class with a keyword-only constructor of plain options.
It proposes; the engine verifies, commits, records and stops. A method sees requests and verdicts, never the clock, the store or
the configuration. One that owns its schedule (AMUSD, PEARL) overrides `decode` and returns the same records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from specbench.config.create import create_part
from specbench.config.options import ConfigError
from specbench.engine.tree import EMPTY, DraftTree, Verdict

if TYPE_CHECKING:
    from specbench.engine.request import Outcome, Request
    from specbench.engine.runtime import Runtime
    from specbench.engine.sampling import SamplingLaw
    from specbench.parts.heads.base import Heads
    from specbench.parts.rules.rule import Rule
    from specbench.processes.placement import Placement


@dataclass(frozen=True)
class Needs:
    """What a method asks for, so that others do not pay for it.

    draft: "none", "local" (in the target's process) or "worker" (in a process of its own, which the method starts).
    taps: which of transformers' hidden_states the target's forwards leave behind (-1: the LM head's input).
    scope: how long the method's state lives; "session" makes prompt order part of the result, and reports say so.
    """

    draft: Literal["none", "local", "worker"] = "none"
    taps: tuple[int, ...] = ()
    scope: Literal["sample", "session"] = "sample"


class Method:
    """Base of all methods. Subclasses set `needs` and override `begin`, `propose`, `observe` (or `decode`)."""

    needs: ClassVar[Needs] = Needs()
    heads_class: ClassVar[type[Heads] | None] = None  # trained heads that it drafts with: `part=heads method=...` makes them
    placement: Placement | None = None  # cores and threads of the target's process, for methods that share them with workers

    def __init__(self, *, draft_length: int | None = None, rule: str | None = None):
        self.draft_length = draft_length
        self.rule = rule

    # What the method is.

    def rule_for(self, law: SamplingLaw) -> Rule:
        """The acceptance rule under a sampling law: the configured one, else the one whose output equals AR's token for token.

        Raises ConfigError for an unknown rule and for `greedy_match` at a temperature above 0.
        """
        from specbench.parts.rules.rule import get_rule

        rule = get_rule(self.rule or ("greedy_match" if law.greedy else "sample_match"))
        if rule.name == "greedy_match" and not law.greedy:
            raise ConfigError("method.rule", rule.name, "is not exact at decoding.temperature > 0: use sample_match or ratio")
        return rule

    def claim(self, law: SamplingLaw) -> str:
        """What is claimed of the output: greedy-exact, sampling-exact or lossy.

        Under `match` rules the ids equal the baseline's at any temperature (keyed noise); under ratio rules the law does.
        """
        return "greedy-exact" if law.greedy and self.rule_for(law).claim != "lossy" else self.rule_for(law).claim

    def same_ids(self, law: SamplingLaw) -> bool:
        """Whether the output must equal the baseline's token for token (and not only in law)."""
        rule = self.rule_for(law)
        return rule.claim != "lossy" and (law.greedy or rule.needs == "choice")

    @property
    def max_nodes(self) -> int:
        """Upper bound of nodes in a proposed tree: room reserved in the target's cache."""
        return self.draft_length or 0

    # Life cycle. `open` once per run, `begin` / `propose` / `observe` per sample, `close` at the end whatever happened.

    def open(self, runtime: Runtime) -> None:
        """Take hold of models; build sessions; start workers. Raises ConfigError when the pair lacks what the method needs."""
        from specbench.engine.session import Session

        self.runtime = runtime
        self.target = Session(runtime.target, taps=self.needs.taps)

    def begin(self, request: Request, first_token: int) -> None:
        """A new sample: forget the last one. `first_token` is the target's own, now pending; prefill drafts here."""

    def propose(self, max_depth: int) -> DraftTree:
        """Draft for one round, at most `max_depth` deep (0: nothing can be kept). An empty tree is one plain step."""
        return EMPTY

    def observe(self, verdict: Verdict) -> None:
        """What the target made of the last proposal (not called after the last round)."""

    def decode(self, request: Request) -> Outcome:
        """Continue one prompt. The default is the sequential schedule."""
        from specbench.parts.schedules.sequential import sequential

        return sequential(self, self.target, self.runtime, request)

    def memory_bytes(self) -> dict[str, int]:
        """Bytes of KV cache by role, for the footprint table."""
        return {"target_kv": self.target.cache.nbytes}

    def facts(self) -> dict[str, float | int | str]:
        """What the method settled for itself in `open` (a measured draft length, say), for run.json."""
        return {}

    def pids(self) -> list[int]:
        """Process ids of the method's workers."""
        worker = getattr(self, "worker", None)
        return [worker.pid] if worker is not None and worker.pid is not None else []

    def close(self) -> None:
        """Free what `open` took; must be safe to call twice and after a failed `open`."""


def create_method(node: Mapping[str, Any], more_prefixes: Sequence[str] = (), key: str = "method") -> Method:
    """Build the method that a configuration node names: `{"_target_": "package.module.Class", ...options}`.

    `key` is the node's place in the configuration ("method" or "baseline"). Raises ConfigError when the target is not allowed,
    cannot be imported or is no Method, and for options that its constructor does not take or refuses.
    """
    return create_part(node, Method, more_prefixes, key)

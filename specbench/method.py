"""The authors' page: what a method is, and everything that a recipe is written with.

A method is one file in `methods/` and one YAML in `conf/method/`: a class whose constructor takes plain options and builds its
parts from them (`super().__init__(drafter, rule=..., stop=..., schedule=..., adapter=...)`). The schedule asks the drafter for
a tree, the target for its answer and the rule for a verdict, and books what happened; a method itself never sees the clock, the
store or the configuration. What is not on the shelf (`specbench.parts`) is written in the method's own file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from specbench.config.create import create_part, named_part
from specbench.config.options import ConfigError, flag, not_together, number, one_of, whole
from specbench.config.specs import PairSpec
from specbench.engine.request import Outcome, Request
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw
from specbench.engine.target import Target, held_bytes, open_target
from specbench.engine.tree import (
    DEEPEST,
    EMPTY,
    MOST_KEPT,
    MOST_NODES,
    WIDEST,
    Contract,
    DraftTree,
    Evidence,
    Feedback,
    Riders,
    Verdict,
)
from specbench.parts.contracts import Adapter, Drafter, Needs, Part, Schedule, Setting, Shape, Source, Stop
from specbench.parts.drafts.choice import Choice
from specbench.parts.drafts.heads import HeadDraft
from specbench.parts.drafts.model import ModelDraft
from specbench.parts.heads.base import Heads, TargetParts, TreeHeads, rank_of, shifted
from specbench.parts.heads.loss import check_loss_options, depth_loss
from specbench.parts.heads.stored import open_heads
from specbench.parts.rules.coins import RuleRng
from specbench.parts.rules.rule import RULES, Rule, exact_rules, get_rule, register, with_typical
from specbench.parts.schedules.sequential import Sequential
from specbench.parts.shapes.chain import Chain
from specbench.parts.shapes.drawn import Drawn, branching_nodes
from specbench.parts.shapes.dynamic import Dynamic
from specbench.parts.stops import make_stop

if TYPE_CHECKING:
    from specbench.processes.placement import Placement


class Method:
    """A drafter, a stop, a rule, a schedule and, where the draft learns, an adapter.

    rule: name or object; None: the one whose output equals AR's token for token. rules: the names that fit this recipe (a rule
    of a plugin's own is held to its contract instead). draft_length: what is reported, None where it does not apply.
    Raises ConfigError for a rule that does not fit and parts that are none.
    """

    heads_class: ClassVar[type[Heads] | None] = None  # trained heads that it drafts with: `part=heads method=...` makes them

    reads_datastore: ClassVar[bool] = False  # whether `method.datastore` names a corpus: `part=datastore` makes one

    def __init__(
        self,
        drafter: Drafter | None = None,
        *,
        rule: str | Rule | None = None,
        rules: Sequence[str] | None = None,
        stop: Stop | None = None,
        schedule: Schedule | None = None,
        adapter: Adapter | None = None,
        draft_length: int | None = None,
    ):
        if rule is not None and not isinstance(rule, Rule) and rules is not None and rule not in rules:
            raise ConfigError("method.rule", rule, f"possible for this draft: {', '.join(rules)}")
        if adapter is not None and not isinstance(adapter, Adapter):
            raise ConfigError("method.adapter", adapter, "give a node that names an Adapter, or null")
        self.drafter = drafter if drafter is not None else Drafter()
        self.stop = stop if stop is not None else Stop()
        self.schedule = schedule if schedule is not None else Sequential()
        self.adapter, self.rule, self.rules, self.draft_length = adapter, rule, rules, draft_length
        self.stop.join(self.drafter)

    @property
    def _parts(self) -> list[Part]:
        return [part for part in (self.drafter, self.stop, self.schedule, self.adapter) if part is not None]

    # What the method is.

    @property
    def needs(self) -> Needs:
        """What its parts need, together."""
        return reduce(or_, (part.needs for part in self._parts))

    def rule_for(self, law: SamplingLaw) -> Rule:
        """The acceptance rule under a sampling law: the configured one, else the one whose output equals AR's token for token.

        Raises ConfigError for an unknown rule and for `greedy_match` at a temperature above 0.
        """
        rule = get_rule(self.rule or ("greedy_match" if law.greedy else "sample_match"))
        if rule.claim == "greedy-exact" and not law.greedy:
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
        return rule.claim != "lossy" and (law.greedy or rule.reads == "choice")

    @property
    def max_nodes(self) -> int:
        """Upper bound of nodes in a proposed tree: room reserved in the target's cache."""
        return max(self.drafter.max_nodes, self.schedule.max_nodes)

    @property
    def placement(self) -> Placement | None:
        """Cores and threads of the target's process, for methods that share them with workers."""
        return self.schedule.placement

    def look_up(self, pair: PairSpec) -> dict[str, Path]:
        """The folders that the options name, by option, before anything is loaded. Raises ConfigError for what is not there."""
        return {name: folder for part in self._parts for name, folder in (part.look_up(pair) or {}).items()}

    # Life cycle. `open` once per run, `decode` per sample, `close` at the end whatever happened.

    def open(self, runtime: Runtime) -> None:
        """Take hold of models; build sessions; start workers. Raises ConfigError when the pair lacks what the method needs."""
        if self.adapter is not None:
            runtime = self.adapter.adopt(runtime)
        self.target = open_target(runtime.target, self.needs.taps)
        missing = self.needs.of_target - self.target.can
        if missing:
            remedy = f"it cannot give {', '.join(sorted(missing))}, which this method needs: choose another target or method"
            raise ConfigError("pair.target", runtime.pair.target.name, remedy)
        self.setting = Setting(runtime, self.target, self.rule_for(runtime.law))
        for part in self._parts:
            part.open(self.setting)
        if self.adapter is not None:
            self.adapter.attach(self.drafter)

    def decode(self, request: Request) -> Outcome:
        """Continue one prompt."""
        return self.schedule.run(self, request)

    def settle(self) -> None:
        """The process has got another number of threads for good: what was chosen by measured costs is chosen anew."""
        for part in self._parts:
            part.settle()

    def reset(self) -> None:
        """A pass over the prompts begins: all parts forget what they keep between samples."""
        for part in self._parts:
            part.reset()

    def sessions(self) -> dict[str, Any]:
        """Sessions of this process by role, target and draft: what they hold can be compared with fresh ones."""
        return reduce(or_, (part.sessions() for part in self._parts), {"target": self.target})

    def memory_bytes(self) -> dict[str, int]:
        """Bytes by part, for the footprint table."""
        return reduce(or_, (part.memory_bytes() for part in self._parts), held_bytes(self.target, "target"))

    def facts(self) -> dict[str, float | int | str]:
        """What the parts settled for themselves in `open` (a measured draft length, say), for run.json."""
        return reduce(or_, (part.facts() for part in self._parts))

    def pids(self) -> list[int]:
        """Process ids of the method's workers."""
        return self.schedule.pids()

    def close(self) -> None:
        """Free what `open` took; safe to call twice and after a failed `open`."""
        for part in self._parts:
            part.close()


# Where the classes stood that runs of format version 1 name: such a run can be continued.
_VERSION_1 = {
    f"specbench.methods.{old}": f"specbench.methods.{family}.{old}"
    for family, old in (
        ("chains", "autoregressive.Autoregressive"),
        ("chains", "speculative.Speculative"),
        ("heads", "eagle.Eagle"),
        ("heads", "hydra.Hydra"),
        ("heads", "medusa.Medusa"),
        ("overlap", "amusd.Amusd"),
        ("overlap", "pearl.Pearl"),
    )
}


def create_method(node: Mapping[str, Any], more_prefixes: Sequence[str] = (), key: str = "method") -> Method:
    """Build the method that a configuration node names: `{"_target_": "package.module.Class", ...options}`.

    `key` is the node's place in the configuration ("method" or "baseline"). Raises ConfigError when the target is not allowed,
    cannot be imported or is no Method, and for options that its constructor does not take or refuses.
    """
    if isinstance(node, Mapping) and node.get("_target_") in _VERSION_1:
        node = {**node, "_target_": _VERSION_1[node["_target_"]]}
    return create_part(node, Method, more_prefixes, key)

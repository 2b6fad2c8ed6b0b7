"""The acceptance rules by name, what each one claims, and which drafts it may meet; a plugin may bring its own.

A rule walks from the root (the pending token) down the drafted nodes and decides which of them stand; after the last one comes
a token of the target's own. Rules know no cache, no model and no clock. Row 0 of `choice` and of `p` belongs to the root, row
i + 1 to node i: it is what the target says *after* that node. Distributions are the warped ones (temperature, top-k, top-p),
for target and draft alike; arithmetic is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import Tensor

from specbench.config.options import ConfigError, number
from specbench.engine.sampling import SamplingLaw
from specbench.engine.tree import Contract, DraftTree, Evidence, Verdict
from specbench.parts.rules.chain import lockstep_ratio, match, path_to, ratio
from specbench.parts.rules.coins import RuleRng, TorchRng
from specbench.parts.rules.lossy import typical
from specbench.parts.rules.tree import delta, k_seq, recursive_with_replacement, recursive_without_replacement

if TYPE_CHECKING:
    from specbench.engine.target import Choosing, Target


@dataclass(frozen=True)
class Rule:
    """An acceptance rule; `judge` applies it. One of a plugin's own is a `Rule`, or a subclass with options that a node names.

    accepts: the contracts under which its claim holds. claim: greedy-exact (the output equals the target's argmax decoding),
    sampling-exact (the output has the target's law; at temperature 0 that is the argmax too) or lossy.
    reads: what it decides by: "choice" for function(tree, choice), the target's own tokens; "probabilities" for
    function(tree, p, coins), its laws and coins of the rule's own. chain_only: trees are refused.
    """

    name: str
    accepts: frozenset[Contract]
    claim: Literal["greedy-exact", "sampling-exact", "lossy"]
    reads: Literal["choice", "probabilities"]
    function: Callable[..., Verdict]
    chain_only: bool = False

    def coins(self, noise_key: int) -> RuleRng | None:
        """The rule's chance for one sample; None for a rule that has none."""
        return TorchRng.seeded(noise_key) if self.reads == "probabilities" else None

    def ask(self, target: Target, tree: DraftTree, law: SamplingLaw, position: int, noise_key: int) -> Evidence:
        """What the target says of pending and a tree, and its own tokens at once, if that is what counts and it can."""
        plain = tree.riders is None and not tree.start_layer
        if plain and self.reads == "choice" and "choice" in target.can:
            return cast("Choosing", target).forward_and_choose(tree, law, position, noise_key)
        return target.forward(tree)

    def judge(
        self, tree: DraftTree, evidence: Evidence, law: SamplingLaw, position: int, noise_key: int, coins: RuleRng | None
    ) -> Verdict:
        """What stands of a tree. `position`: the output index of the choice that row 0 makes.

        Raises ValueError for a draft under whose contract the claim does not hold.
        """
        check_contract(self, tree.contract)
        if self.reads == "choice":
            if evidence.own is not None:
                if self.function is match and tree.parents is None:  # counted where the tokens were chosen
                    agreed = evidence.own.agreed
                    return Verdict(tuple(range(agreed)), tuple(evidence.own.tokens[: agreed + 1]))
                return self.function(tree, evidence.own.tokens)
            if tree.parents is None:
                positions: Sequence[int] = range(position, position + len(tree.tokens) + 1)
            elif evidence.logits.is_cpu:  # elsewhere one read for all rows is cheaper than one a level
                return self.function(tree, _Asked(tree, evidence.logits, position, law, noise_key))
            else:
                positions = [position, *(position + depth for depth in tree.depths())]
            return self.function(tree, law.choose(evidence.logits, positions, noise_key))
        return self.function(tree, law.probabilities(evidence.logits), coins)


class _Asked(Sequence[int]):
    """The target's own tokens of a tree's rows, each chosen when it is asked for: a walk sees a few rows of a hundred."""

    def __init__(self, tree: DraftTree, logits: Tensor, position: int, law: SamplingLaw, noise_key: int):
        self.tree, self.logits, self.position, self.law, self.noise_key = tree, logits, position, law, noise_key
        self.rows = range(1 + len(tree.tokens))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        row = self.rows[row]  # IndexError beyond the rows, and -1 is the last
        depth = 0 if self.law.greedy else len(path_to(self.tree, row - 1))  # a greedy token is the same at any position
        return self.law.choose(self.logits, [self.position + depth], self.noise_key, [row])[0]


_ANY = frozenset(Contract)
_IID = frozenset({Contract.NONE, Contract.IID})
_WITHOUT_REPLACEMENT = frozenset({Contract.NONE, Contract.WITHOUT_REPLACEMENT})
_DRAWN = _IID | _WITHOUT_REPLACEMENT  # on a chain, where every sibling set has one member, the two are the same

RULES: dict[str, Rule] = {}


def register(rule: Rule) -> Rule:
    """Make a rule known by its name; the suite that enumerates laws takes every rule there is."""
    assert RULES.setdefault(rule.name, rule) is rule, f"two rules are named {rule.name}"
    return rule


for _rule in (
    # Matching compares with tokens that are the target's own whatever was drafted: any draft will do.
    Rule("greedy_match", _ANY, "greedy-exact", "choice", match),
    Rule("sample_match", _ANY, "sampling-exact", "choice", match),
    # Given any children, delta's output has the target's law: how they were chosen does not matter either.
    Rule("delta", _ANY, "sampling-exact", "probabilities", delta),
    Rule("ratio", _DRAWN, "sampling-exact", "probabilities", ratio, chain_only=True),
    Rule("recursive_with_replacement", _IID, "sampling-exact", "probabilities", recursive_with_replacement),
    Rule(
        "recursive_without_replacement",
        _WITHOUT_REPLACEMENT,
        "sampling-exact",
        "probabilities",
        recursive_without_replacement,
    ),
    Rule("k_seq", _IID, "sampling-exact", "probabilities", k_seq),
    Rule("lockstep_ratio", _DRAWN, "sampling-exact", "probabilities", lockstep_ratio, chain_only=True),
    Rule("typical", _ANY, "lossy", "probabilities", typical),
):
    register(_rule)


def get_rule(name: object) -> Rule:
    """The rule of that name, or the rule itself. Raises ConfigError (key method.rule) that lists what there is."""
    if isinstance(name, Rule):
        return name
    try:
        return RULES[name]  # type: ignore[index]
    except (KeyError, TypeError):
        raise ConfigError("method.rule", name, "choose one of " + ", ".join(RULES)) from None


def exact_rules(*, trees: bool) -> list[str]:
    """Names of the exact rules that take drafts chosen without chance, and trees of them if asked."""
    fixed = [rule for rule in RULES.values() if Contract.FIXED_SET in rule.accepts and rule.claim != "lossy"]
    return [rule.name for rule in fixed if not (trees and rule.chain_only)]


def with_typical(rule: str | Rule | None, epsilon: float, delta: float) -> str | Rule | None:
    """What `method.rule` means where typical acceptance has options of the method's own. Raises ConfigError for these."""
    number("method.epsilon", epsilon, 0.0, 1.0, "a number above 0 and below 1")
    number("method.delta", delta, 0.0, math.inf, "a number above 0")
    for name, value, end in (("epsilon", epsilon, 1.0), ("delta", delta, math.inf)):
        if not 0.0 < value < end:
            raise ConfigError(f"method.{name}", value, f"give a number above 0{' and below 1' if end == 1.0 else ''}")
    return replace(RULES["typical"], function=partial(typical, epsilon=epsilon, delta=delta)) if rule == "typical" else rule


def check_contract(rule: Rule, contract: Contract) -> None:
    """Raise ValueError, naming both, when the rule's claim does not hold for drafts made under this contract."""
    if contract not in rule.accepts:
        fitting = ", ".join(other.name for other in RULES.values() if contract in other.accepts)
        raise ValueError(
            f"rule {rule.name} is not {rule.claim} for a draft of contract {contract.value}: use one of {fitting}, "
            f"or draft under {' or '.join(sorted(c.value for c in rule.accepts if c is not Contract.NONE))}"
        )

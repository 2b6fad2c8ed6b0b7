"""The acceptance rules by name, what each one claims, and which drafts it may meet.

A rule walks from the root (the pending token) down the drafted nodes and decides which of them stand; after the last one comes
a token of the target's own. Rules know no cache, no model and no clock. Row 0 of `choice` and of `p` belongs to the root, row
i + 1 to node i: it is what the target says *after* that node. Distributions are the warped ones (temperature, top-k, top-p),
for target and draft alike; arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from specbench.config.options import ConfigError
from specbench.engine.tree import Contract, Verdict
from specbench.parts.rules.chain import lockstep_ratio, match, ratio
from specbench.parts.rules.coins import RuleRng, TorchRng
from specbench.parts.rules.lossy import typical
from specbench.parts.rules.tree import delta, k_seq, recursive_with_replacement, recursive_without_replacement

__all__ = [
    "RULES",
    "Rule",
    "RuleRng",
    "TorchRng",
    "check_contract",
    "delta",
    "get_rule",
    "k_seq",
    "lockstep_ratio",
    "match",
    "ratio",
    "recursive_with_replacement",
    "recursive_without_replacement",
    "typical",
]


@dataclass(frozen=True)
class Rule:
    """An acceptance rule.

    accepts: the contracts under which its claim holds. claim: greedy-exact (the output equals the target's argmax decoding),
    sampling-exact (the output has the target's law; at temperature 0 that is the argmax too) or lossy.
    needs: "choice" for function(tree, choice), "probabilities" for function(tree, p, rng). chain_only: trees are refused.
    """

    name: str
    accepts: frozenset[Contract]
    claim: Literal["greedy-exact", "sampling-exact", "lossy"]
    needs: Literal["choice", "probabilities"]
    function: Callable[..., Verdict]
    chain_only: bool = False


_ANY = frozenset(Contract)
_IID = frozenset({Contract.NONE, Contract.IID})
_WITHOUT_REPLACEMENT = frozenset({Contract.NONE, Contract.WITHOUT_REPLACEMENT})
_DRAWN = _IID | _WITHOUT_REPLACEMENT  # on a chain, where every sibling set has one member, the two are the same

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
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
    )
}


def get_rule(name: str) -> Rule:
    """The rule of that name. Raises ConfigError (key method.rule) that lists what there is."""
    try:
        return RULES[name]
    except (KeyError, TypeError):
        raise ConfigError("method.rule", name, "choose one of " + ", ".join(RULES)) from None


def check_contract(rule: Rule, contract: Contract) -> None:
    """Raise ValueError, naming both, when the rule's claim does not hold for drafts made under this contract."""
    if contract not in rule.accepts:
        fitting = ", ".join(other.name for other in RULES.values() if contract in other.accepts)
        raise ValueError(
            f"rule {rule.name} is not {rule.claim} for a draft of contract {contract.value}: use one of {fitting}, "
            f"or draft under {' or '.join(sorted(c.value for c in rule.accepts if c is not Contract.NONE))}"
        )

"""Exact laws of acceptance rules: every branch of the production code is replayed and its probability accumulated.

A toy language gives a distribution for every prefix. A draft and a rule ask an `EnumeratingRng` for their coins; the law of
what one round emits follows exactly, extended with the target's own continuation to sequences of one length, and is compared
with the target's law over those sequences.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specbench.engine.sampling import SamplingLaw
from specbench.engine.tree import Contract, DraftTree, Evidence, Verdict
from specbench.parts.rules.rule import Rule

Sequences = dict[tuple[int, ...], float]
EXACT = 1e-9  # the error below which a law counts as kept: rounding alone
WRONG = 1e-3  # the least error by which a wrong variant must stand out
AT_ONE = SamplingLaw(temperature=1.0)


class EnumeratingRng:
    """A RuleRng that follows one branch: a recorded list of outcomes first, then always the first possible one."""

    def __init__(self, prefix: Sequence[int] = ()):
        self.outcomes = list(prefix)
        self.options: list[list[int]] = []  # possible outcomes of every coin tossed
        self.probability = 1.0

    def _toss(self, probabilities: list[float]) -> int:
        possible = [outcome for outcome, probability in enumerate(probabilities) if probability > 0]
        toss = len(self.options)
        if toss == len(self.outcomes):
            self.outcomes.append(possible[0])
        self.options.append(possible)
        self.probability *= probabilities[self.outcomes[toss]]
        return self.outcomes[toss]

    def bernoulli(self, probability: float) -> bool:
        assert 0.0 <= probability <= 1.0, probability
        return self._toss([1.0 - probability, probability]) == 1

    def categorical(self, probabilities: Tensor) -> int:
        values = probabilities.tolist()
        assert all(value >= 0 for value in values) and abs(sum(values) - 1) < 1e-9, values
        return self._toss(values)


def branches(body: Callable[[EnumeratingRng], Any]) -> Iterator[tuple[float, Any]]:
    """(probability, result) of every way the coins of `body` can fall."""
    prefix: list[int] | None = []
    while prefix is not None:
        rng = EnumeratingRng(prefix)
        result = body(rng)
        yield rng.probability, result
        prefix = None
        for toss in reversed(range(len(rng.options))):  # the last coin that still has another side
            later = [outcome for outcome in rng.options[toss] if outcome > rng.outcomes[toss]]
            if later:
                prefix = [*rng.outcomes[:toss], later[0]]
                break


@dataclass
class Language:
    """A distribution over `vocab_size` tokens for every prefix, float64: logits drawn from the seed, then warped by `law`.

    support: tokens that may occur at all (the others have probability 0 everywhere).
    """

    seed: int
    vocab_size: int = 3
    law: SamplingLaw = AT_ONE
    spread: float = 1.5
    support: tuple[int, ...] | None = None
    _cache: dict[tuple[int, ...], Tensor] = field(default_factory=dict, repr=False)

    def after(self, prefix: Sequence[int]) -> Tensor:
        key = tuple(prefix)
        if key not in self._cache:
            number = self.seed
            for token in key:
                number = (number * 1000003 + token + 1) % (2**61 - 1)
            generator = torch.Generator().manual_seed(number)
            logits = torch.randn(self.vocab_size, dtype=torch.float64, generator=generator) * self.spread
            if self.support is not None:
                outside = [token for token in range(self.vocab_size) if token not in self.support]
                logits[outside] = -torch.inf
            self._cache[key] = self.law.probabilities(logits)
        return self._cache[key]


def warped_pair(seed):
    return Language(seed, law=SamplingLaw(0.7, top_p=0.7)), Language(seed + 500, law=SamplingLaw(0.7, top_p=0.8))


PAIRS = {  # name -> seed -> (target, draft): what a pair of distributions can look like
    "any": lambda seed: (Language(seed), Language(seed + 500)),
    "flat": lambda seed: (Language(seed, spread=0.3), Language(seed + 500, spread=0.3)),
    "p = q": lambda seed: (Language(seed), Language(seed)),
    "top-p": lambda seed: (
        Language(seed, law=SamplingLaw(0.7, top_p=0.7)),
        Language(seed + 500, law=SamplingLaw(0.7, top_p=0.8)),
    ),
    "zeros in p": lambda seed: (Language(seed, support=(0, 2)), Language(seed + 500)),
    "zeros in q": lambda seed: (Language(seed), Language(seed + 500, support=(1, 2))),
    "disjoint": lambda seed: (Language(seed, support=(0, 1)), Language(seed + 500, support=(2,))),
    "greedy target": lambda seed: (Language(seed, law=SamplingLaw(0.0)), Language(seed + 500)),
    "greedy both": lambda seed: (Language(seed, law=SamplingLaw(0.0)), Language(seed + 500, law=SamplingLaw(0.0))),
}


def law_of(language: Language, length: int, start: tuple[int, ...] = ()) -> Sequences:
    """Probability of every continuation of `start` up to sequences of `length` tokens."""
    law: Sequences = {start: 1.0}
    for _ in range(length - len(start)):
        law = {(*s, t): m * p for s, m in law.items() for t, p in enumerate(language.after(s).tolist()) if p > 0}
    return law


# --- drafts ---------------------------------------------------------------------------------------------------------------

Drafter = Callable[[Language, Any], DraftTree]  # (draft language, rng) -> tree


def drawn_tree(shape: Sequence[int], contract: Contract) -> Drafter:
    """shape[d] children under every node at depth d, drawn from the draft language; a chain when all entries are 1."""

    def draft(language: Language, rng: Any) -> DraftTree:
        tokens: list[int] = []
        parents: list[int] = []
        laws: list[Tensor] = []
        level: list[tuple[int, tuple[int, ...]]] = [(-1, ())]
        for width in shape:
            below = []
            for node, prefix in level:
                q = language.after(prefix)
                rest = q
                for _ in range(width):
                    if rest.sum() <= 0:
                        break  # fewer tokens than siblings: nothing is left to draw
                    token = rng.categorical(rest / rest.sum())
                    if contract is Contract.WITHOUT_REPLACEMENT:
                        rest = rest.clone()
                        rest[token] = 0.0
                    below.append((len(tokens), (*prefix, token)))
                    tokens.append(token)
                    parents.append(node)
                    laws.append(q)
            level = below
        chain = all(width == 1 for width in shape)
        return DraftTree(tokens, None if chain else parents, contract, laws)

    return draft


def best_tree(shape: Sequence[int], claim_q: Contract | None = None) -> Drafter:
    """The likeliest children, chosen deterministically; `claim_q` passes them off as drawn from q (a known mistake)."""

    def draft(language: Language, rng: Any) -> DraftTree:
        tokens: list[int] = []
        parents: list[int] = []
        laws: list[Tensor] = []
        level: list[tuple[int, tuple[int, ...]]] = [(-1, ())]
        for width in shape:
            below = []
            for node, prefix in level:
                q = language.after(prefix)
                for token in q.argsort(descending=True, stable=True)[:width].tolist():
                    if claim_q is not None and q[token] <= 0:
                        continue
                    below.append((len(tokens), (*prefix, token)))
                    tokens.append(token)
                    parents.append(node)
                    laws.append(q)
            level = below
        chain = all(width == 1 for width in shape)
        q_rows = None if claim_q is None else laws
        return DraftTree(tokens, None if chain else parents, claim_q or Contract.FIXED_SET, q_rows)

    return draft


def no_draft(language: Language, rng: Any) -> DraftTree:
    return DraftTree([])


# --- one round ------------------------------------------------------------------------------------------------------------


def prefix_of(tree: DraftTree, node: int) -> tuple[int, ...]:
    """The tokens from below the root down to a node."""
    prefix: list[int] = []
    while node >= 0:
        prefix.append(tree.tokens[node])
        node = tree.parent(node)
    return tuple(reversed(prefix))


def target_rows(target: Language, tree: DraftTree) -> Tensor:
    """p [N + 1, V] as a target would give it for this tree."""
    return torch.stack([target.after(prefix_of(tree, node)) for node in range(-1, len(tree.tokens))])


RuleFunction = Callable[[DraftTree, Tensor, Any], Verdict]


def with_draws(match_rule: Callable[[DraftTree, Sequence[int]], Verdict]) -> RuleFunction:
    """A match rule as a function of distributions: one draw per node, made before the rule looks at any of them."""

    def rule(tree: DraftTree, p: Tensor, rng: Any) -> Verdict:
        return match_rule(tree, [rng.categorical(row) for row in p])

    return rule


def round_law(target: Language, draft: Language, drafter: Drafter, rule: RuleFunction, length: int) -> Sequences:
    """Exact law of the first `length` tokens when one round is followed by the target itself."""
    emitted: Sequences = {}

    def body(rng: EnumeratingRng) -> tuple[int, ...]:
        tree = drafter(draft, rng)
        verdict = rule(tree, target_rows(target, tree), rng)
        check_verdict(tree, verdict)
        return verdict.tokens

    for probability, tokens in branches(body):
        emitted[tokens] = emitted.get(tokens, 0.0) + probability
    law: Sequences = {}
    for tokens, mass in emitted.items():
        for sequence, probability in law_of(target, length, tokens[:length]).items():
            law[sequence] = law.get(sequence, 0.0) + mass * probability
    return law


def check_verdict(tree: DraftTree, verdict: Verdict) -> None:
    """What every verdict must be: a path from the root down, its tokens, and at most one more."""
    assert [tree.parent(node) for node in verdict.path] == [-1, *verdict.path][:-1], "a path from the root down"
    assert tuple(tree.tokens[node] for node in verdict.path) == verdict.tokens[: len(verdict.path)]
    assert len(verdict.tokens) - len(verdict.path) in (0, 1)


def worst_error(law: Sequences, truth: Sequences) -> float:
    """The largest difference in probability over all sequences."""
    return max(abs(law.get(s, 0.0) - truth.get(s, 0.0)) for s in itertools.chain(law, truth))


def round_error(target: Language, draft: Language, drafter: Drafter, rule: RuleFunction, length: int) -> float:
    """How far one round's law is from the target's, sequences of `length` tokens."""
    return worst_error(round_law(target, draft, drafter, rule, length), law_of(target, length))


# --- any rule -------------------------------------------------------------------------------------------------------------


class Draws(Sequence[int]):
    """One token a row, drawn when it is first looked at: rows that nobody looks at double no branches."""

    def __init__(self, p: Tensor, rng: Any):
        self.p, self.rng = p, rng
        self.drawn: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.p)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[row] for row in range(len(self))[index]]
        row = range(len(self))[index]
        if row not in self.drawn:
            self.drawn[row] = self.rng.categorical(self.p[row])
        return self.drawn[row]


@dataclass
class DrawnLaw:
    """A sampling law at temperature 1 whose own tokens are drawn with the rule's coins."""

    rng: Any
    greedy = False

    def choose(self, logits: Tensor, positions: Sequence[int], noise_key: int, rows: Sequence[int] | None = None) -> Draws:
        return Draws((logits if rows is None else logits[rows]).softmax(-1), self.rng)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)


def judged(rule: Rule) -> RuleFunction:
    """A rule as a schedule calls it, whatever it decides by, and whether or not `judge` is its own."""

    def judge(tree: DraftTree, p: Tensor, rng: Any) -> Verdict:
        return rule.judge(tree, Evidence(p.log(), {}), DrawnLaw(rng), 0, 0, rng)  # type: ignore[arg-type]

    return judge


def drafters_for(rule: Rule) -> Iterator[tuple[str, Sequence[int], Drafter]]:
    """Every kind of draft that a rule accepts: its name, its shape, and what drafts it."""
    for shape in [(1,), (1, 1)] if rule.chain_only else [(1,), (2,), (1, 1), (2, 1)]:
        if Contract.FIXED_SET in rule.accepts:
            yield "fixed_set", shape, best_tree(shape)
        for contract in (Contract.IID, Contract.WITHOUT_REPLACEMENT):
            if contract in rule.accepts:
                yield contract.value, shape, drawn_tree(shape, contract)
    yield "none", (), no_draft


def broken_claims(rule: Rule, seed: int = 3) -> dict[str, float]:
    """By draft and pair of laws, how far a rule is from what it claims, where that is more than rounding; empty: it holds.

    greedy-exact is looked at where the target has one token of its own; lossy claims nothing.
    """
    found: dict[str, float] = {}
    if rule.claim == "lossy":
        return found
    pairs = [name for name in PAIRS if rule.claim == "sampling-exact" or name.startswith("greedy")]
    for contract, shape, drafter in drafters_for(rule):
        for name in pairs:
            target, draft = PAIRS[name](seed)
            error = round_error(target, draft, drafter, judged(rule), len(shape) + 1)
            if not error < EXACT:
                found[f"{contract} {list(shape)}, {name}"] = error
    return found

"""Trees drawn from a draft: every shape against the exact law of what a round emits, and the best static tree against the
paper's dynamic programme.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from law_tools import AT_ONE, EXACT, WRONG, Language, law_of, round_error, target_rows
from run_folders import composed
from scipy.stats import chisquare
from torch import Tensor

from specbench.config.compose import compose
from specbench.config.create import create_part
from specbench.config.options import ConfigError
from specbench.engine.tree import Contract, DraftTree
from specbench.method import Choice, Drawn, Method, Stop, branching_nodes
from specbench.methods.trees.dyspec import Growing
from specbench.methods.trees.rsd import StochasticBeam, gumbel_below
from specbench.parts.rules.coins import TorchRng
from specbench.parts.rules.tree import k_seq, recursive_with_replacement, recursive_without_replacement
from specbench.parts.shapes.static import build_static_tree, expected_accepted_length
from specbench.run.run import run


class Toy:
    """A source on a toy language, which counts its forwards and holds shapes to the numbering that sources have."""

    def __init__(self, language: Language):
        self.language, self.num_forwards = language, 0

    def root(self) -> Tensor:
        self.paths: list[tuple[int, ...]] = []
        self.num_forwards = 1
        return self.language.after(()).log()[None]

    def next(self, tokens: list[int], parents: list[int]) -> Tensor:
        self.num_forwards += 1
        known = len(self.paths)
        assert all(parent < known for parent in parents)
        self.paths += [(*(self.paths[p] if p >= 0 else ()), t) for t, p in zip(tokens, parents, strict=True)]
        return torch.stack([self.language.after(path).log() for path in self.paths[known:]])


class Coins:
    """A choice that draws by the coins of an enumeration, or of a seeded generator."""

    draws = True

    def __init__(self, rng: Any, generator: torch.Generator | None = None):
        self.rng, self.generator = rng, generator

    def laws(self, logits: Tensor) -> Tensor:
        return AT_ONE.probabilities(logits)

    race = Choice.race

    def draw(self, logits: Tensor) -> tuple[int, Tensor]:
        law = self.laws(logits)[0]
        return self.rng.categorical(law), law

    def draw_many(self, q: Tensor, count: int, replacement: bool) -> list[list[int]]:
        rows = []
        for law in q:
            rest, tokens = law.clone(), []
            for _ in range(count):
                if float(rest.sum()) <= 0.0:
                    break
                tokens.append(self.rng.categorical(rest / rest.sum()))
                if not replacement:
                    rest[tokens[-1]] = 0.0
            rows.append(tokens)
        return rows


class Best:
    """A choice that takes the likeliest."""

    draws = False

    def scores(self, logits: Tensor, position: int) -> Tensor:
        return logits


def drawn_by(shape: Any, depth: int, stop: Stop | None = None):
    """A shape as the enumerating tools want a drafter."""

    def draft(language: Language, rng: Any) -> DraftTree:
        return shape.grow(Toy(language), depth, Coins(rng), 0, stop or Stop())

    return draft


IID = functools.partial(Drawn, contract=Contract.IID)
APART = functools.partial(Drawn, contract=Contract.WITHOUT_REPLACEMENT)
SHAPES = {
    "SpecInfer": (IID(branching_nodes([2, 1])), recursive_with_replacement),
    "SpecTr": (IID(branching_nodes([2, 1])), k_seq),
    "RSD-C": (APART(branching_nodes([2, 2])), recursive_without_replacement),
    "Sequoia": (APART([(0,), (1,), (2,), (0, 0)]), recursive_without_replacement),
    "DySpec, best first": (Growing(3, None), recursive_without_replacement),
    "DySpec, threshold": (Growing(4, 0.2), recursive_without_replacement),
}
PAIRS = {
    "any": (Language(3), Language(503)),
    "zeros": (Language(4, support=(0, 2)), Language(504, support=(1, 2))),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_round_has_the_targets_law(name, pair):
    shape, rule = SHAPES[name]
    assert round_error(*PAIRS[pair], drawn_by(shape, 2), rule, 2) < EXACT


class Picky(Growing):
    """Drops what it drew when it dislikes it: the mistake that DySpec's order of decisions avoids."""

    def grow(self, *args: Any) -> DraftTree:
        tree = super().grow(*args)
        kept = [node for node in range(len(tree.tokens)) if tree.tokens[node] != 0 or tree.parent(node) >= 0]
        kept = [node for node in kept if tree.parent(node) < 0 or tree.parent(node) in kept]
        place = {node: number for number, node in enumerate(kept)}
        parents = [place.get(tree.parent(node), -1) for node in kept]
        return DraftTree([tree.tokens[n] for n in kept], parents, tree.contract, [tree.q[n] for n in kept])


class Sorted(Drawn):
    """Tries siblings in the order of their ids."""

    def grow(self, *args: Any) -> DraftTree:
        tree = super().grow(*args)
        return DraftTree(sorted(tree.tokens), tree.parents, tree.contract, tree.q)


@pytest.mark.parametrize(
    "shape", [Picky(3, 0.2), Sorted([(0,), (1,)], Contract.WITHOUT_REPLACEMENT)], ids=["picky", "in the order of ids"]
)
def test_the_enumeration_sees_a_biased_tree(shape):
    assert round_error(*PAIRS["any"], drawn_by(shape, 1), recursive_without_replacement, 2) > WRONG


# ------------------------------------------------------------------------------------------------------ the stochastic beam
def beam_counts(num_seeds: int, width: int, by_id: bool) -> tuple[list[int], list[float]]:
    """How often each pair of tokens came out of a round (and the target behind it), and how often it should."""
    target, draft = Language(11), Language(511)
    truth = law_of(target, 2)
    counts: Counter[tuple[int, ...]] = Counter()
    generator, rng = torch.Generator().manual_seed(1), TorchRng.seeded(2)
    for _ in range(num_seeds):
        tree = StochasticBeam(width).grow(Toy(draft), 2, Coins(rng, generator), 0, Stop())
        if by_id:
            order = sorted(range(len(tree.tokens)), key=lambda n: (tree.depths()[n], tree.tokens[n]))
            place = {node: number for number, node in enumerate(order)} | {-1: -1}
            tree = DraftTree(
                [tree.tokens[n] for n in order],
                [place[tree.parent(n)] for n in order],
                tree.contract,
                [tree.q[n] for n in order],
            )
        tokens = recursive_without_replacement(tree, target_rows(target, tree), rng).tokens[:2]
        while len(tokens) < 2:
            tokens = (*tokens, rng.categorical(target.after(tokens)))
        counts[tokens] += 1
    return [counts[s] for s in truth], [num_seeds * p for p in truth.values()]


@pytest.mark.parametrize("num_seeds", [1500, pytest.param(8000, marks=pytest.mark.deep)])
@pytest.mark.parametrize("width", [2, 3])
def test_two_tokens_behind_a_stochastic_beam_have_the_targets_joint_law(width, num_seeds):
    assert chisquare(*beam_counts(num_seeds, width, by_id=False)).pvalue > 1e-3


def test_the_order_of_ids_is_seen_to_be_wrong():
    assert chisquare(*beam_counts(1500, 2, by_id=True)).pvalue < 1e-3


def test_noise_below_a_maximum_is_gumbel_noise_on_that_condition():
    """The formula as published, the maximum itself included, and -inf where there is no probability."""
    for law, largest in (([0.2, 0.5, 0.3, 0.0], 0.3), ([0.7, 0.1, 0.1, 0.1], -1.7)):
        log_prob = torch.tensor(law, dtype=torch.float64).log()
        free = log_prob - torch.empty_like(log_prob).exponential_(generator=torch.Generator().manual_seed(3)).log()
        found = gumbel_below(free.tolist(), largest)
        plain = -(math.exp(-largest) - (-free.max()).exp() + (-free).exp()).log()
        assert found == pytest.approx(plain.tolist(), abs=1e-9) and max(found) == largest
        assert (found[3] == -math.inf) is (law[3] == 0.0)


# ------------------------------------------------------------------------------------------------------------------ Sequoia
def programme(acceptance: list[float], nodes: int, depth: int) -> float:
    """Expected accepted tokens of the best tree, by the paper's dynamic programme: over the number of the root's children,
    the last child's subtree getting what the others leave.
    """

    @functools.cache
    def best(size: int, levels: int, children: int) -> float:
        """Of `size` nodes below a root that has `children` of them as children; -inf where that cannot be."""
        if children == 0:
            return 0.0 if size == 0 else float("-inf")
        if levels == 0 or size < children:
            return float("-inf")
        chance = acceptance[children - 1]
        return max(
            best(size - 1 - below, levels, children - 1) + chance * (1.0 + any_number(below, levels - 1))
            for below in range(size)
        )

    def any_number(size: int, levels: int) -> float:
        return max(best(size, levels, children) for children in range(min(size, len(acceptance)) + 1))

    return max(any_number(size, depth) for size in range(nodes + 1))


def test_the_best_node_again_and_again_is_what_the_dynamic_programme_finds():
    draw = random.Random(0)
    for nodes, depth, ranks in itertools.product((1, 2, 5, 9), (1, 2, 4), (1, 3)):
        acceptance = sorted((draw.random() / ranks for _ in range(ranks)), reverse=True)
        levels = [acceptance] * depth
        found = expected_accepted_length(levels, build_static_tree(levels, nodes))
        assert found == pytest.approx(programme(acceptance, nodes, depth), abs=1e-12)


# ------------------------------------------------------------------------------------------------------------------- DySpec
def test_dyspec_takes_the_best_places_and_counts_its_forwards():
    language = Language(7, vocab_size=5)

    def paths(tree: DraftTree) -> dict[tuple[int, ...], float]:
        """Nodes by their path, and the draft's probability of each."""
        found: dict[tuple[int, ...], float] = {}
        below: list[tuple[int, ...]] = []
        for node, token in enumerate(tree.tokens):
            above = () if tree.parent(node) < 0 else below[tree.parent(node)]
            below.append((*above, token))
            found[below[-1]] = found.get(above, 1.0) * float(language.after(above)[token])
        return found

    source = Toy(language)
    tree = Growing(6, None).grow(source, 9, Best(), 0, Stop())
    found = paths(tree)
    inner = {path[:-1] for path in found}
    assert len(inner) <= source.num_forwards <= 6, "one forward per expanded node, whose children another place may beat"
    everything = {(): 1.0}
    for length in range(1, 7):
        for path in itertools.product(range(5), repeat=length):
            if path[:-1] in everything and length <= 4:
                everything[path] = everything[path[:-1]] * float(language.after(path[:-1])[path[-1]])
    best = sorted((p for path, p in everything.items() if path), reverse=True)[:6]
    assert sorted(found.values(), reverse=True) == pytest.approx(best), "known tokens: the likeliest paths, and no others"

    source = Toy(language)
    tree = Growing(12, 0.1).grow(source, 3, Best(), 0, Stop())
    assert tree.depth <= 3 and source.num_forwards <= 3, "one forward per level"
    assert all(paths(tree)[path] > 0 for path in paths(tree))


def test_on_a_certain_draft_dyspec_is_a_chain():
    certain = Language(2, vocab_size=4, spread=40.0)
    tree = Growing(5, 0.2).grow(Toy(certain), 5, Best(), 0, Stop())
    assert tree.parents == [-1, 0, 1, 2, 3]


# ------------------------------------------------------------------------------------------------------------------ options
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=specinfer", "method.branching=[]"], "method.branching=[]: give children per node by depth"),
        (["method=rsd", "method.branching=[2,0]"], "method.branching=0: possible: an integer of at least 1"),
        (["method=dyspec", "method.threshold=soon"], "method.threshold='soon': possible: auto"),
        (["method=sequoia", "method.acceptance=[0.1,0.6]"], "method.acceptance=[0.1, 0.6]: possible: auto, or probabilities"),
        (["method=spectr", "method.rule=recursive_without_replacement"], "possible for this draft: greedy_match"),
    ],
)
def test_wrong_options_are_refused_by_name(overrides, message):
    with pytest.raises(ConfigError) as caught:
        create_part(compose(overrides).method, Method, [], "method")
    assert message in str(caught.value)


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_a_known_token_that_is_hardly_ever_right_goes_behind_a_likely_one(threshold: float | None):
    """Half of all rounds get to the root's second token, which has a tenth; its first one's child has nine tenths of a half."""

    class Steep(Toy):
        def __init__(self) -> None:
            pass

        def root(self) -> Tensor:
            return torch.tensor([[0.5] + [0.1] * 5]).log()

        def next(self, tokens: list[int], parents: list[int]) -> Tensor:
            return torch.tensor([[0.02, 0.9] + [0.02] * 4] * len(tokens)).log()

    tree = Growing(3, threshold).grow(Steep(), 3, Best(), 0, Stop())
    assert (tree.tokens, tree.parents) == ([0, 1, 1], [-1, 0, 1])


@pytest.mark.slow
def test_dyspec_emits_more_per_round_than_a_fixed_tree_where_its_draft_knows_how_sure_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On the built-in pair, greedy, eight stand-in prompts: counts alone, which no load of the machine changes.

    That draft's best token is the target's at 0.63 of the places, and has 0.31 by its law: trees by it are too broad. At a
    temperature of 0.6 the law is near the truth.
    """

    def emitted(name: str, *options: str) -> float:
        sizes = ["data.limit=8", "decoding.max_new_tokens=48", "engine.threads=1", f"runs_dir={tmp_path}"]
        return run(composed(f"method={name}", *options, "data=humaneval", "data.source=standin", *sizes))["emitted_per_round"]

    grown = ("dyspec", "method.num_nodes=8", "method.draft_length=4", "method.threshold=null")
    fixed, unsure = emitted("specinfer", "method.branching=[2,1,1,1]"), emitted(*grown)
    scores = Choice.scores
    monkeypatch.setattr(Choice, "scores", lambda self, logits, position: scores(self, logits, position) / 0.6)
    assert emitted(*grown) > fixed > unsure


@pytest.mark.parametrize(
    ("branching", "is_kept"), [([64, 63], True), ([64, 64], False), ([100, 100, 100], False), ([10**9] * 99, False)]
)
def test_a_tree_that_no_memory_holds_is_refused_before_it_is_laid_out(branching: list[int], is_kept: bool) -> None:
    if is_kept:
        assert len(branching_nodes(branching)) == 64 + 64 * 63
        return
    with pytest.raises(ConfigError, match=r"method\.branching=\[.*more than 4096 nodes"):
        branching_nodes(branching)

"""A session's logits equal those of one fresh forward, whatever was fed, branched, committed and rolled back before.

The reference is always the model itself, without a cache, over the plain sequence of ids. Twins put a known fault in (a boolean
mask, positions one off, a cache that forgets to gather, ...) and show that the same assertions catch it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import specbench.engine.session as session_module
from specbench.engine import masks
from specbench.engine.cache import KVCache
from specbench.engine.model import Model
from specbench.engine.session import Session
from specbench.engine.tree import DraftTree, Verdict

ATTENTIONS = ("sdpa", "eager")
WAYS = [(architecture, attention) for architecture in tiny.ARCHITECTURES for attention in ATTENTIONS]
# A tree: node 2 follows node 0, node 5 follows node 2; kept paths that are no leading run of rows need the gather.
PARENTS = [-1, -1, 0, 1, 0, 2, 2, 5]
PATH = (0, 2, 6)
SKIPPING_PATH = (1, 3)

MODELS: dict[Any, Model] = {}


def model_of(architecture: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Model:
    """Made once: sessions never change a model."""
    key = (architecture, attention, dtype)
    if key not in MODELS:
        MODELS[key] = tiny.model(architecture, attention=attention, dtype=dtype)
    return MODELS[key]


def same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def started(model: Model, capacity: int = 96, taps: Sequence[int] = ()) -> Session:
    session = Session(model, taps)
    session.start(capacity)
    return session


def path_to(node: int, parents: Sequence[int]) -> list[int]:
    path: list[int] = []
    while node >= 0:
        path.insert(0, node)
        node = parents[node]
    return path


# ------------------------------------------------------------------------------------- what is asserted, fault or no fault
def check_chain(model: Model, tolerance: float = 1e-5) -> None:
    """Prefill and pieces of 1 to 9 rows: the logits of every row."""
    ids = tiny.prompt(24)
    session = started(model)
    pieces = [session.feed(ids[:5])]
    for start, end in ((5, 6), (6, 10), (10, 11), (11, 12), (12, 21), (21, 24)):
        pieces.append(session.feed(ids[start:end]))
    same(torch.cat(pieces), tiny.plain_forward(model.module, ids), tolerance)


def check_tree(model: Model, parents: Sequence[int] = PARENTS, prompt_length: int = 9, tolerance: float = 1e-5) -> None:
    """Every node's logits equal those of the plain sequence of its path."""
    prompt, nodes = tiny.prompt(prompt_length), tiny.prompt(len(parents), seed=3)
    session = started(model)
    session.prefill(prompt)
    session.pending = 7
    logits = session.forward(DraftTree(nodes, list(parents))).logits
    assert logits.shape == (1 + len(nodes), model.vocab_size)
    same(logits[0], tiny.plain_forward(model.module, [*prompt, 7])[-1], tolerance)
    for node in range(len(nodes)):
        ids = [*prompt, 7, *(nodes[i] for i in path_to(node, parents))]
        same(logits[node + 1], tiny.plain_forward(model.module, ids)[-1], tolerance)


def check_commit(model: Model, path: tuple[int, ...] = PATH, tolerance: float = 1e-5) -> None:
    """After a branch is kept, a second tree and a chain continue it as a fresh sequence of the committed ids would."""
    prompt, nodes = tiny.prompt(9), tiny.prompt(len(PARENTS), seed=3)
    session = started(model)
    session.prefill(prompt)
    session.pending = 7
    session.forward(DraftTree(nodes, PARENTS))
    kept = [nodes[node] for node in path]
    session.commit(Verdict(path, (*kept, 11)))
    committed = [*prompt, 7, *kept]
    assert session.length == len(committed) and session.pending == 11
    second = session.forward(DraftTree([20, 21, 22], [-1, -1, 1])).logits
    same(second[0], tiny.plain_forward(model.module, [*committed, 11])[-1], tolerance)
    same(second[3], tiny.plain_forward(model.module, [*committed, 11, 21, 22])[-1], tolerance)
    session.commit(Verdict((1, 2), (21, 22, 5)))
    third = session.forward(DraftTree([1, 2, 3])).logits
    same(third, tiny.plain_forward(model.module, [*committed, 11, 21, 22, 5, 1, 2, 3])[-4:], tolerance)


# ----------------------------------------------------------------------------------------------------------- chains and trees
@pytest.mark.parametrize(("architecture", "attention"), WAYS)
def test_pieces_of_a_chain_equal_one_fresh_forward(architecture: str, attention: str) -> None:
    check_chain(model_of(architecture, attention))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_in_double_precision_the_error_is_rounding_alone(architecture: str) -> None:
    # Under eager attention transformers computes the softmax in float32 whatever the model's type: sdpa only.
    model = model_of(architecture, "sdpa", torch.float64)
    check_chain(model, 1e-12)
    check_tree(model, tolerance=1e-12)
    check_commit(model, tolerance=1e-12)


@pytest.mark.parametrize(("architecture", "attention"), WAYS)
def test_every_node_of_a_tree_sees_its_own_path(architecture: str, attention: str) -> None:
    check_tree(model_of(architecture, attention))


@pytest.mark.parametrize("path", [PATH, SKIPPING_PATH, (0,), ()], ids=str)
@pytest.mark.parametrize(("architecture", "attention"), WAYS)
def test_a_kept_branch_continues_as_a_fresh_sequence(architecture: str, attention: str, path: tuple[int, ...]) -> None:
    check_commit(model_of(architecture, attention), path)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("architecture", tiny.WITH_SLIDING_LAYERS)
def test_windows_of_trees_are_cut_by_depth_and_not_by_row(architecture: str, attention: str) -> None:
    # Twelve siblings and their children: twice as many rows as the window is long, yet only two deep.
    parents = [-1] * tiny.WINDOW * 2 + list(range(tiny.WINDOW * 2))
    check_tree(model_of(architecture, attention), parents)
    check_tree(model_of(architecture, attention), [-1, *range(10)])  # and one branch deeper than the window


@pytest.mark.parametrize("architecture", tiny.WITH_SLIDING_LAYERS)
def test_rollback_past_a_sliding_window_is_exact(architecture: str) -> None:
    model = model_of(architecture)
    ids, others = tiny.prompt(40), tiny.prompt(20, seed=9)
    session = started(model)
    session.feed(ids)
    session.rollback(10)  # five windows back: what the window had left behind must still be there
    same(session.feed(others), tiny.plain_forward(model.module, ids[:10] + others)[10:])


def test_one_row_after_a_short_past_needs_no_mask() -> None:
    assert not masks.MaskPlan((masks.FULL,), None).needs_mask(50, 1)
    plan = masks.MaskPlan((masks.SLIDING,), 6)
    assert not plan.needs_mask(5, 1) and plan.needs_mask(6, 1) and plan.needs_mask(0, 2)


# ----------------------------------------------------------------------------------------------------------------------- fuzz
OPERATION = st.one_of(
    st.tuples(st.just("feed"), st.integers(1, 7)),
    st.tuples(st.just("rollback"), st.integers(0, 12)),
    st.tuples(st.just("tree"), st.integers(1, 7)),
)


def play(model: Model, operations: Sequence[tuple[str, int]], seed: int) -> None:
    """Any history of feeding, rolling back, branching and committing; every logit against a fresh forward."""
    chance = random.Random(seed)
    ids = [chance.randrange(model.vocab_size) for _ in range(3)]
    session = started(model, 128)
    session.feed(ids)
    for operation, size in operations:
        if operation == "rollback":
            length = max(1, len(ids) - size)
            session.rollback(length)
            ids = ids[:length]
        elif operation == "feed":
            new = [chance.randrange(model.vocab_size) for _ in range(size)]
            logits = session.feed(new)
            ids = ids + new
            same(logits, tiny.plain_forward(model.module, ids)[-size:])
        else:
            parents = [chance.randrange(-1, node) for node in range(size)]
            nodes = [chance.randrange(model.vocab_size) for _ in range(size)]
            session.pending = chance.randrange(model.vocab_size)
            logits = session.forward(DraftTree(nodes, parents)).logits
            path = path_to(chance.randrange(-1, size), parents)
            ids = [*ids, session.pending, *(nodes[node] for node in path)]
            reference = tiny.plain_forward(model.module, ids)[-len(path) - 1 :]
            same(logits[[0, *(node + 1 for node in path)]], reference)
            session.commit(Verdict(tuple(path), (*(nodes[node] for node in path), 1)))
        assert session.length == len(ids)
    same(session.feed([2])[-1], tiny.plain_forward(model.module, [*ids, 2])[-1])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", *tiny.WITH_SLIDING_LAYERS])
def test_any_history_equals_a_fresh_forward(architecture: str) -> None:
    model = model_of(architecture)

    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @given(st.lists(OPERATION, min_size=1, max_size=8), st.integers(0, 2**32))
    def any_history(operations: list[tuple[str, int]], seed: int) -> None:
        play(model, operations, seed)

    any_history()


# ------------------------------------------------------------------------------------------------------------------- twins
def boolean_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    real = session_module.build

    def build(*arguments: Any) -> Any:
        mask = real(*arguments)
        return {kind: m == 0 for kind, m in mask.items()} if isinstance(mask, dict) else mask == 0

    monkeypatch.setattr(session_module, "build", build)


def late_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Session.start

    def start(self: Session, capacity: int) -> None:
        real(self, capacity)
        self._positions = (torch.arange(capacity) + (torch.arange(capacity) > 5)).unsqueeze(0)  # one off after the prompt

    monkeypatch.setattr(Session, "start", start)


def flat_depths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_depths", lambda parents: list(range(len(parents))))


def nothing_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVCache, "keep_rows", lambda self, start, rows: self.rollback(start + len(rows)))


def causal_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    real = session_module.build

    def build(plan: Any, past: int, depths: Any, parents: Any, *rest: Any) -> Any:
        return real(plan, past, depths, None, *rest)

    monkeypatch.setattr(session_module, "build", build)


def window_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    real = session_module.build

    def build(plan: Any, past: int, depths: Sequence[int], *rest: Any) -> Any:
        return real(plan, past, range(len(depths)), *rest)

    monkeypatch.setattr(session_module, "build", build)


def no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    real = session_module.build

    def build(plan: Any, *rest: Any) -> Any:
        full = real(masks.MaskPlan((masks.FULL,), None), *rest)
        return full if len(plan.layer_types) == 1 else dict.fromkeys(plan.layer_types, full)

    monkeypatch.setattr(session_module, "build", build)


WIDE = [-1] * tiny.WINDOW * 2 + list(range(tiny.WINDOW * 2))


@pytest.mark.parametrize(
    ("fault", "check", "architecture", "attention"),
    [
        (boolean_mask, check_chain, "llama", "eager"),
        (boolean_mask, check_tree, "gpt2", "eager"),
        (boolean_mask, check_tree, "gemma3", "eager"),
        (late_positions, check_chain, "llama", "sdpa"),
        (late_positions, check_chain, "gpt2", "sdpa"),
        (flat_depths, check_tree, "qwen3", "sdpa"),
        (flat_depths, check_commit, "gpt_neox", "sdpa"),
        (nothing_gathered, check_commit, "llama", "sdpa"),
        (nothing_gathered, check_commit, "mistral", "eager"),
        (causal_tree, check_tree, "llama", "sdpa"),
        (causal_tree, check_tree, "mistral", "sdpa"),
        (window_by_row, lambda model: check_tree(model, WIDE), "mistral", "sdpa"),
        (window_by_row, lambda model: check_tree(model, WIDE), "gemma3", "sdpa"),
        (no_window, check_chain, "mistral", "sdpa"),
        (no_window, check_chain, "gemma3", "sdpa"),
    ],
)
def test_these_assertions_catch(
    fault: Callable[[pytest.MonkeyPatch], None],
    check: Callable[[Model], None],
    architecture: str,
    attention: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError, match="not close"):
        check(model_of(architecture, attention))


def test_the_fuzz_catches_a_cache_that_forgets_to_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_gathered(monkeypatch)
    with pytest.raises(AssertionError, match="not close"):
        for seed in range(20):
            play(model_of("llama"), [("tree", 6), ("feed", 2)], seed)


# --------------------------------------------------------------------------------------------------------------- the buffers
def buffers(session: Session) -> list[int]:
    return [tensor.data_ptr() for layer in session.cache.layers for tensor in (layer.keys, layer.values)]


def one_sample(session: Session, capacity: int = 60) -> list[list[int]]:
    """A sample of many rounds; the buffers' addresses after each."""
    session.start(capacity)
    session.prefill(tiny.prompt(6))
    session.pending = 1
    seen = []
    for turn in range(8):
        nodes = tiny.prompt(len(PARENTS), seed=turn)
        session.forward(DraftTree(nodes, PARENTS))
        session.commit(Verdict(PATH, (*(nodes[node] for node in PATH), 3)))
        session.rollback(session.length - 1)
        seen.append(buffers(session))
    return seen


def test_nothing_is_allocated_inside_a_sample_or_by_a_shorter_next_one() -> None:
    session = Session(model_of("llama"))
    first, second, shorter = one_sample(session), one_sample(session), one_sample(session, 40)
    assert all(addresses == first[0] for addresses in first + second + shorter)
    before = session.cache.nbytes
    longer = one_sample(session, 90)
    assert all(addresses == longer[0] for addresses in longer)
    assert longer[0] != first[0] and session.cache.nbytes == before * 90 // 60


def test_the_size_in_bytes_is_what_the_layers_hold() -> None:
    session = started(model_of("llama"), 50)
    session.feed([1, 2])
    assert session.cache.nbytes == 2 * 2 * 50 * 1 * 16 * 4  # layers x (keys, values) x positions x heads x head_dim x float32


def test_more_rows_than_were_reserved_are_refused() -> None:
    session = started(model_of("llama"), 8)
    session.feed(tiny.prompt(8))
    with pytest.raises(AssertionError, match="cache of 8 positions asked for 9"):
        session.feed([1])


def test_growth_between_samples_keeps_nothing_of_the_old_one() -> None:
    model = model_of("llama")
    session = started(model, 10)
    session.feed(tiny.prompt(10, seed=4))
    session.start(40)
    ids = tiny.prompt(30)
    same(session.feed(ids[:20]), tiny.plain_forward(model.module, ids[:20]))
    same(session.feed(ids[20:]), tiny.plain_forward(model.module, ids)[20:])


def test_only_the_last_row_is_returned_when_asked_for() -> None:
    model = model_of("gpt2")
    ids = tiny.prompt(9)
    logits = started(model).feed(ids, last_only=True)
    assert logits.shape == (1, model.vocab_size)
    same(logits, tiny.plain_forward(model.module, ids)[-1:])

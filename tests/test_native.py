"""The native backend: transformers' logits, and of its own the same bits for a row in any company; what it leaves to eager.

The reference is `Session` on the same module, which test_session.py and test_target.py hold against fresh forwards.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import re
import signal
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GraniteConfig, LlamaConfig, Qwen2Config

from specbench.check.state import cache_error
from specbench.config.schema import PairConfig
from specbench.config.specs import PairSpec
from specbench.engine import threads
from specbench.engine.backends.native import build
from specbench.engine.backends.native.cache import NativeCache
from specbench.engine.backends.native.linear import NativeLinear, NativeNorm, run_natively
from specbench.engine.backends.native.packing import BLOCK, EIGHT_BITS, FLOATS, FOUR_BITS, HALVES
from specbench.engine.backends.native.pages import HUGE, Pages
from specbench.engine.backends.native.session import NativeSession
from specbench.engine.backends.native.weights import Layer, NativeWeights, refusal
from specbench.engine.branching import Branching
from specbench.engine.model import Model
from specbench.engine.probe import probe_rollback
from specbench.engine.session import Session
from specbench.engine.target import open_branching, open_session, open_target
from specbench.engine.tree import DraftTree, Riders, Verdict
from specbench.methods.heads.eagle.draft import FeatureDraft
from specbench.methods.heads.eagle.heads import EagleHeads
from specbench.methods.heads.eagle.native import NativeFeatureDraft
from specbench.methods.heads.hydra import HydraHeads
from specbench.methods.heads.medusa import MedusaHeads
from specbench.pair.backend import choose_backend
from specbench.pair.load import on_its_backend
from specbench.pair.spec import specify
from specbench.parts.heads.base import TargetParts
from specbench.parts.shapes.plan import Level, TreePlan
from specbench.processes.placement import Placement

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# Widths that no sixteen divides, grouped heads, biases, norms of heads, windows, Granite's factors.
ODD = {"vocab_size": 75, "hidden_size": 42, "intermediate_size": 72, "num_attention_heads": 6, "num_key_value_heads": 2}
ODD |= {"head_dim": 20, "num_hidden_layers": 3, "initializer_range": 0.3, "max_position_embeddings": 512}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**ODD, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**ODD, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "granite": GraniteConfig(
        **ODD, embedding_multiplier=3.0, attention_multiplier=0.3, residual_multiplier=0.6, logits_scaling=4.0
    ),
    "qwen3": tiny.config("qwen3"),
    "mistral": tiny.config("mistral"),
}
MODELS: dict[str, Model] = {}
PROMPT = 37


def model_of(architecture: str) -> Model:
    """Made once, on transformers' own forward; every weight drawn, biases too."""
    if architecture not in MODELS:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = AutoModelForCausalLM.from_config(CONFIGS[architecture], attn_implementation="sdpa").eval()
            for name, weight in module.requires_grad_(False).named_parameters():
                if name.endswith("bias"):
                    weight.normal_()
        MODELS[architecture] = Model.wrap(module)
    return MODELS[architecture]


def native(architecture: str, instructions: str | None = None) -> Model:
    return replace(model_of(architecture), native=None).run_natively(instructions)


def begun(model: Model, kind: Any = open_session, **options: Any) -> Any:
    session = kind(model, **options)
    session.start(256)
    session.feed(drawn(PROMPT, model), last_only=True)
    return session


def drawn(count: int, model: Model, seed: int = 0) -> list[int]:
    return tiny.prompt(count, seed, model.vocab_size)


def tree_of(size: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [-1, *(draw.randrange(-1 if node > 3 else 0, node) for node in range(1, size))]


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


# -------------------------------------------------------------------------------------------------- against transformers
def check_logits(theirs: Model, ours: Model) -> None:
    """A prompt, a tree, riders at places of their own, a rollback, an accepted path, layers apart: logits, taps and caches."""
    taps = (0, 2, -1)
    reference, session = begun(theirs, Session, taps=taps), begun(ours, taps=taps)
    assert isinstance(session, NativeSession)
    parents = tree_of(9, seed=1)
    tree = DraftTree(drawn(9, ours, 1), parents, riders=Riders([-1, 2, 9], tokens=[5, 6, 7], positions=[1, 4, 9]))
    for target in (reference, session):
        target.pending = 3
    expected, found = reference.forward(tree), session.forward(tree)
    same(found.logits, expected.logits)
    assert found.riders is not None and expected.riders is not None
    same(found.riders, expected.riders)
    for layer in taps:
        same(found.taps[layer], expected.taps[layer])
    path = []
    node = 8
    while node >= 0:
        path.insert(0, node)
        node = parents[node]
    verdict = Verdict(tuple(path), (*(tree.tokens[n] for n in path), 11))
    for target in (reference, session):
        target.commit(verdict)
        target.rollback(target.length - 1)
    same(session.feed(drawn(70, ours, 2)), reference.feed(drawn(70, ours, 2)))  # more rows than go at once
    assert session.length == reference.length == PROMPT + len(path) + 70
    ids = [*drawn(PROMPT, ours), 3, *(tree.tokens[n] for n in path[:-1]), *drawn(70, ours, 2)]
    assert cache_error(session, ids) < 1e-4


@pytest.mark.parametrize("architecture", CONFIGS)
def test_logits_are_those_of_transformers(architecture: str) -> None:
    check_logits(model_of(architecture), native(architecture))


@pytest.mark.parametrize("odd", ["embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"])
def test_a_models_forward_alone_says_which_options_count(odd: str) -> None:
    """A file may hold more than its model reads: another's factors, and a window (as Llamas that were once Mistrals have)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        given = LlamaConfig(**ODD, **{odd: 3.0}, sliding_window=6)
        module = AutoModelForCausalLM.from_config(given, attn_implementation="sdpa").eval().requires_grad_(False)
    ids = drawn(20, Model.wrap(module))
    wanted = module(torch.tensor([ids])).logits[0]
    for model in (Model.wrap(module), Model.wrap(module).run_natively()):
        session = open_session(model)
        session.start(32)
        same(session.feed(ids), wanted)


def test_a_window_that_is_not_cut_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""
    made = NativeWeights._layer

    def open_wide(*arguments: Any) -> Layer:
        layer = made(*arguments)
        layer.window = 0
        return layer

    monkeypatch.setattr(NativeWeights, "_layer", open_wide)
    with pytest.raises(AssertionError, match="not close"):
        check_logits(model_of("mistral"), native("mistral"))


@pytest.mark.parametrize("architecture", ["llama", "granite"])  # granite: a factor that states of a later layer have had
def test_layers_apart_and_drafts_on_some_of_them(architecture: str) -> None:
    theirs, ours = model_of(architecture), native(architecture)
    for skipped in ((), (1,)):
        hidden = []
        for session in (begun(theirs, Session), begun(ours)):
            mark = session.mark()
            fork = session.fork(skipped)
            drafted = [fork.feed([4, 5]), fork.feed([6], last_only=True)]
            session.restore(mark)
            lower = session.run_layers([4, 5], 0, 2)
            session.pending = 4
            rest = session.forward(DraftTree([5], start_layer=2, hidden=lower)).logits
            session.commit(Verdict((), (9,)))
            hidden.append((*drafted, lower, session.exit_logits(lower), rest, session.feed([9])))
        for one, other in zip(*hidden, strict=True):
            same(one, other)


def test_a_draft_grows_a_tree_and_keeps_a_path() -> None:
    theirs, ours = model_of("qwen3"), native("qwen3")
    said = []
    for model in (theirs, ours):
        session = begun(model, open_branching)
        assert isinstance(session, Branching)
        session.branch()
        grown = [session.grow([3, 4, 5], [-1, -1, -1]), session.grow([6, 7], [1, 1]), session.grow([8], [4])]
        session.keep([1, 4, 5])
        session.rollback(session.length - 1)
        said.append([*grown, session.feed([9, 10])])
    for one, other in zip(*said, strict=True):
        same(one, other)


def check_kept_rows() -> None:
    """Rows of a path are moved by the forward that comes next, and by whoever asks for something else before it."""

    def fork(session: Any) -> torch.Tensor:
        mark = session.mark()
        drafted = session.fork((1,)).feed([5, 6])
        session.restore(mark)
        return torch.cat([drafted, session.feed([5, 6])])

    def lower(session: Any) -> torch.Tensor:
        hidden = session.run_layers([5], 0, 2)
        session.pending = 5
        return session.forward(DraftTree([], start_layer=2, hidden=hidden)).logits

    def again(session: Any) -> torch.Tensor:
        session.cache.keep_rows(PROMPT, [0, 2])  # of the three that were kept: pending and the path's two
        return session.feed([5, 6])

    def more_room(session: Any) -> torch.Tensor:
        session.cache.reserve(4 * session.cache.capacity if isinstance(session, NativeSession) else 4096)
        return session.feed([5, 6])

    def many(session: Any) -> torch.Tensor:
        return session.feed(drawn(70, session.model, 2))  # more rows than go at once

    def cut(session: Any) -> torch.Tensor:
        session.rollback(session.length - 1)
        return session.feed([5, 6])

    for then in (fork, lower, again, more_room, many, cut):
        said = []
        for session in (begun(model_of("llama"), Session), begun(native("llama"))):
            session.pending = 3
            session.forward(DraftTree([4, 5, 6, 7, 8], [-1, -1, 1, 1, 1]))
            session.commit(Verdict((1, 4), (5, 8, 9)))
            assert (getattr(session.cache, "unmoved", None) is not None) == isinstance(session, NativeSession)
            said.append(then(session))
        same(*said)


def test_rows_that_are_kept_move_before_anybody_reads_them() -> None:
    check_kept_rows()


def test_rows_that_stay_where_they_were_fed_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""
    monkeypatch.setattr(NativeCache, "settle", lambda self: setattr(self, "unmoved", None))
    with pytest.raises(AssertionError, match="not close"):
        check_kept_rows()


# --------------------------------------------------------------------------------------------------------------- the bits
def check_bits(session: Any, sizes: Sequence[int]) -> None:
    """Rows of a chain, and nodes of trees, are bit for bit what feeding their path one by one gives."""
    model, start = session.model, session.length

    def one_by_one(ids: Sequence[int]) -> torch.Tensor:
        session.rollback(start)
        return torch.cat([session.feed([token]) for token in ids])

    for size in sizes:
        ids, parents = drawn(size, model, size), tree_of(size, size)
        session.rollback(start)
        chain = session.feed(ids).clone()
        assert torch.equal(chain, one_by_one(ids)), f"other bits in a chain of {size}"
        session.rollback(start)
        tree = session.feed(ids, parents=parents).clone()
        for node in {size - 1, size // 2, size // 3}:
            path, at = [], node
            while at >= 0:
                path.insert(0, ids[at])
                at = parents[at]
            assert torch.equal(tree[node], one_by_one(path)[-1]), f"other bits in a tree of {size}"


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_rows_bits_do_not_depend_on_its_company(architecture: str) -> None:
    every = range(1, 65) if architecture == "llama" else (2, 3, 7, 33, 64)
    check_bits(begun(native(architecture)), every)


def test_transformers_own_bits_do() -> None:
    """The twin: what this is for."""
    with pytest.raises(AssertionError, match="other bits"):
        check_bits(begun(model_of("llama"), Session), range(2, 33))


def test_instruction_sets_and_threads_give_the_same_bits() -> None:
    """Those with fused multiply-adds; without them sums round once more."""
    ids, parents = drawn(50, model_of("llama"), 5), tree_of(50, 5)
    sets = [s for s in ("avx512", "avx2", "portable") if build.instruction_set() in ("avx512", s) or s == "portable"]
    said = {name: begun(native("llama", name)).feed(ids, parents=parents) for name in sets}
    same(said["portable"], begun(model_of("llama"), Session).feed(ids, parents=parents))
    check_bits(begun(native("llama", "portable")), (3, 17))
    if len(said) == 3:
        assert torch.equal(said["avx512"], said["avx2"])
    session = begun(native("llama"))
    before = threads.count()
    try:
        for many in (2, 3, 1):
            threads.use(many)
            session.rollback(PROMPT)
            assert torch.equal(session.feed(ids, parents=parents), said[build.instruction_set()])
    finally:
        threads.use(before)


def test_torch_keeps_to_one_thread_where_the_native_engine_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pools that spin on the same cores take them from each other: with both, verifying two rows took twice its time."""
    monkeypatch.setattr(threads, "_native", None)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        model = on_its_backend(Model.wrap(tiny.module("llama")), "native")
        assert (threads.count(), torch.get_num_threads()) == (2, 1)
        with Placement((), 3).applied():
            assert (threads.count(), torch.get_num_threads()) == (3, 1)
        assert (threads.count(), torch.get_num_threads()) == (2, 1)
        assert on_its_backend(model, "eager").native is not None
        assert (threads.count(), torch.get_num_threads()) == (2, 2)  # back with torch, as many as there were
    finally:
        torch.set_num_threads(before)


def test_weights_are_halved_where_that_changes_no_bit() -> None:
    module = tiny.module("llama")
    for weight in module.parameters():
        weight.copy_(weight.bfloat16().float())
    halved, whole = Model.wrap(module).run_natively(), Model.wrap(module)
    whole.native = NativeWeights(module, whole.plan, smaller=False)
    assert halved.native.shape.head.kind == HALVES and whole.native.shape.head.kind == FLOATS
    assert halved.native.nbytes < 0.6 * whole.native.nbytes
    ids = drawn(20, whole)
    assert torch.equal(begun(halved).feed(ids), begun(whole).feed(ids))


def quantised(shape: torch.Size, bits: int) -> torch.Tensor:
    """Numbers that GGUF's Q4_1 or Q8_0 stand for: d * q + m in float32, d and m of half precision."""
    blocks = (*shape[:-1], shape[-1] // BLOCK)
    scale = ((torch.rand(*blocks, 1) + 0.1) / 40).half().float()
    if bits == 4:
        q = torch.randint(0, 16, (*blocks, BLOCK))
        q[..., 3], q[..., 17] = 0, 15  # a block's extremes are always met
        return (q * scale + (-8 * scale * torch.rand_like(scale)).half().float()).flatten(-2)
    q = torch.randint(-127, 128, (*blocks, BLOCK))
    q[..., 5] = 127
    return (q * (scale / 8)).flatten(-2)


def in_blocks() -> Any:
    """A Llama with numbers that GGUF's blocks stand for: of four bits, and its tied LM head of eight."""
    shape = {"vocab_size": 75, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    module = AutoModelForCausalLM.from_config(LlamaConfig(**shape, num_attention_heads=4, tie_word_embeddings=True))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, weight in module.eval().requires_grad_(False).named_parameters():
            if weight.dim() == 2:
                weight.copy_(quantised(weight.shape, 8 if "embed" in name else 4))
    return module


def test_quantised_weights_stay_in_their_blocks_and_take_less() -> None:
    module = in_blocks()
    small, whole = Model.wrap(module).run_natively(), Model.wrap(module)
    whole.native = NativeWeights(module, whole.plan, smaller=False)
    layer = ctypes.cast(small.native.shape.layer, ctypes.POINTER(Layer))[0]
    assert {layer.qkv.kind, layer.out.kind, layer.gate_up.kind, layer.down.kind} == {FOUR_BITS}
    assert small.native.shape.head.kind == EIGHT_BITS and small.native.read_bytes < whole.native.read_bytes / 3.5
    ids = drawn(40, whole)
    same(begun(small).feed(ids), begun(whole).feed(ids))
    check_bits(begun(small), (2, 3, 4, 5, 6, 9, 13))
    same(begun(small).feed(ids), begun(Model.wrap(module), Session).feed(ids))
    module.model.layers[1].mlp.down_proj.weight[3, 40] *= 1 + 1e-6  # one number is none of the block's
    assert ctypes.cast(Model.wrap(module).run_natively().native.shape.layer, ctypes.POINTER(Layer))[1].down.kind == FLOATS


def test_blocks_give_the_same_bits_on_every_instruction_set() -> None:
    module = in_blocks()
    sets = [s for s in build.INSTRUCTION_SETS if build.instruction_set() in ("avx512", s) or s == "portable"]
    models = {name: Model.wrap(module) for name in sets}
    for name, model in models.items():
        model.native = NativeWeights(module, model.plan, name)
        check_bits(begun(model), (7,))
    said = {name: begun(model).feed(drawn(9, model)) for name, model in models.items()}
    same(said["portable"], said[build.instruction_set()])  # sums between blocks are rounded once more there
    assert all(torch.equal(one, said[build.instruction_set()]) for name, one in said.items() if name != "portable")


@pytest.mark.parametrize("instructions", [None, "avx2", "portable"])
@pytest.mark.parametrize("bits", [4, 8])
def test_sums_of_blocks_are_as_near_as_floats(bits: int, instructions: str | None) -> None:
    """To sums of double precision: as torch's float32, and within what 24 bits of a block's greatest number leave out."""
    if instructions == "avx2" and build.instruction_set() == "portable":
        pytest.skip("this processor has no AVX2")
    model = Model.wrap(tiny.module("llama"))
    weights = NativeWeights(model.module, model.plan, instructions)
    linear = torch.nn.Linear(256, 90, bias=False).requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        linear.weight.copy_(quantised(linear.weight.shape, bits))
        x = torch.randn(40, 256)
    x[10:20, 77] *= 1000
    x[20:30] *= 1e-20
    x[30:39] *= 1e18
    x[39] = 0
    native = NativeLinear(linear, weights)
    assert packed_kind(native) == {4: FOUR_BITS, 8: EIGHT_BITS}[bits]
    exact, ours, theirs = x.double() @ linear.weight.double().T, native(x).double(), (x @ linear.weight.T).double()
    assert torch.equal(torch.cat([native(row) for row in x.split(1)]), native(x))
    error, usual = (ours - exact).abs(), (theirs - exact).abs()
    most = x.abs().unflatten(1, (-1, BLOCK)).amax(2).double()
    left_out = 2.0**-22 * most @ linear.weight.abs().double().unflatten(1, (-1, BLOCK)).sum(2).T
    assert (error <= left_out).all()
    assert not ((native(x.bfloat16().float()).double() - exact).abs() <= left_out).all(), "eight bits would be seen"
    for rows in (slice(0, 10), slice(20, 30), slice(30, 39)):
        assert error[rows].mean() <= 1.5 * usual[rows].mean(), (rows, error[rows].mean() / usual[rows].mean())
    assert not ours[39].any()


@pytest.mark.parametrize("odd", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_stays_so_in_blocks(odd: float) -> None:
    model = Model.wrap(tiny.module("llama")).run_natively()
    linear = torch.nn.Linear(64, 33, bias=False).requires_grad_(False)
    linear.weight.copy_(quantised(linear.weight.shape, 4))
    x = torch.ones(3, 64)
    x[1, 40] = odd
    said = NativeLinear(linear, model.native)(x)
    assert not said[1].isfinite().any() and said[0::2].isfinite().all()


def packed_kind(linear: NativeLinear) -> int:
    return int(linear._kept[0].kind)


def test_matrices_lie_in_private_pages_side_by_side() -> None:
    """Shared ones, as Python's mmap makes them unasked, are never huge."""
    pages = Pages()
    first, second = pages.copy(torch.arange(100.0)), pages.zeros((3, 5))
    assert torch.equal(first, torch.arange(100.0)) and not second.any()
    assert first.data_ptr() % HUGE == 0 and second.data_ptr() - first.data_ptr() == 448
    large = pages.zeros((20 * HUGE // 4,))
    assert large.data_ptr() % HUGE == 0 and not large[::1000].any()
    maps = Path("/proc/self/smaps")
    if maps.exists():
        starts = [line for line in maps.read_text().splitlines() if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line)]
        inside = [
            line for line in starts if int(line.split("-")[0], 16) <= first.data_ptr() < int(line.split("-")[1].split()[0], 16)
        ]
        assert [line.split()[1] for line in inside] == ["rw-p"]


def test_where_there_are_no_huge_pages_small_ones_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux built without them, and systems that only look like it, refuse the word."""

    class Refusing(mmap.mmap):
        def madvise(self, *given: int) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Refusing)
    assert torch.equal(Pages().copy(torch.arange(100.0)), torch.arange(100.0))


def test_a_process_that_forks_computes_in_its_child_too() -> None:
    """Which has none of its parent's threads: a child that waits for them waits for ever."""
    session, many = begun(native("llama")), threads.count()
    threads.use(2)
    try:
        before = session.feed([1, 2, 3])
        session.rollback(PROMPT)
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            os._exit(0 if torch.equal(session.feed([1, 2, 3]), before) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert torch.equal(session.feed([1, 2, 3]), before)
    finally:
        threads.use(many)


def test_weights_that_change_are_packed_again() -> None:
    module = tiny.module("llama")
    model = Model.wrap(module).run_natively()
    before = begun(model).feed([1, 2, 3])
    for weight in module.parameters():
        weight.mul_(1.1)
    model.refresh()
    after = begun(model).feed([1, 2, 3])
    same(after, begun(Model.wrap(module), Session).feed([1, 2, 3]))
    assert not torch.allclose(before, after)


# ------------------------------------------------------------------------------------------------------------------ heads
def eagle_heads(model: Model) -> EagleHeads:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        heads = EagleHeads(TargetParts.of(model.module), attention_heads=3, feed_forward=40, rope_theta=500.0)
        for weight in heads.requires_grad_(False).parameters():
            weight.normal_(std=0.3) if weight.dim() == 2 else weight.normal_(mean=1.0, std=0.3)
    return heads


def check_features(heads: EagleHeads, other: EagleHeads | None = None) -> None:
    """Prompt, two levels of a tree, true features in their place, a chain: predictions of both forms."""
    theirs, ours = FeatureDraft(heads, 75), NativeFeatureDraft(other or heads, 75)
    features, tokens = torch.randn(12, 42, generator=torch.Generator().manual_seed(0)), list(range(12))
    said = []
    for draft in (theirs, ours):
        draft.start(64)
        first = draft.extend(features[:7], tokens[:7])
        level = draft.descend(first.expand(3, -1), [20, 21, 22], [0, 0, 0])
        below = draft.descend(level[[0, 2, 2]], [30, 31, 32], [0, 2, 2])
        draft.rollback(7)
        again = draft.extend(features[7:9], tokens[7:9])
        chain = draft.descend(again, [40], [0])
        said.append((first, level, below, again, chain, draft.descend(chain, [41], [0])))
        assert draft.length == 11 and draft.num_forwards == 6
    for one, other_one in zip(*said, strict=True):
        same(other_one, one)


def test_eagles_layer_predicts_what_it_predicts_on_torch() -> None:
    check_features(eagle_heads(model_of("llama")))


def test_a_layer_with_another_weight_is_found() -> None:
    """The twin."""
    other = eagle_heads(model_of("llama"))
    other.layer.attention_out.weight.mul_(1.01)
    with pytest.raises(AssertionError, match="not close"):
        check_features(eagle_heads(model_of("llama")), other)


def test_linear_layers_and_norms_of_heads() -> None:
    native_of, heads = native("llama").native, eagle_heads(model_of("llama"))
    x = torch.randn(9, 42)
    linear, norm = heads.layer.gate, heads.feature_norm
    theirs, lm_head = (linear(x), norm(x)), model_of("llama").module.lm_head
    run_natively(heads, native_of)
    ours = (heads.layer.gate(x), heads.feature_norm(x))
    assert isinstance(heads.layer.gate, NativeLinear) and isinstance(heads.feature_norm, NativeNorm)
    for one, other in zip(ours, theirs, strict=True):
        same(one, other)
    same(NativeLinear(lm_head, native_of, is_lm_head=True)(x), lm_head(x))
    assert torch.equal(torch.cat([heads.layer.gate(row) for row in x.unsqueeze(1)]), ours[0]), "other bits in company"


def tree_heads(cls: type[Any], target: Model) -> Any:
    """Heads of two levels, two layers each, whose every weight is drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        heads = cls(TargetParts.of(target.module).over(range(0, 75, 2)), num_heads=2, num_layers=2)
        for weight in heads.requires_grad_(False).parameters():
            weight.normal_(std=0.2)
    return heads


def filled(heads: Any, hidden: Tensor) -> list[Tensor]:
    """The logits that each level of a tree with several nodes is filled by, the nodes being the same whatever they say."""
    plan = TreePlan([(0,), (2,), (0, 0), (2, 1)], torch.device("cpu"))
    said: list[Tensor] = []

    def pick(logits: Tensor, level: Level) -> list[int]:
        said.append(logits)
        return [11 + node for node in range(len(level.parent))]

    heads.fill(hidden, 7, plan.levels, pick)
    return said


@pytest.mark.parametrize("cls", [MedusaHeads, HydraHeads])
@pytest.mark.parametrize("count", [1, 2])
def test_blocks_of_heads_say_what_they_say_on_torch(cls: type[Any], count: int) -> None:
    """Behind one hidden state for all nodes and, as in training, behind a text's; other weights are told apart."""
    target, native_of = model_of("llama"), native("llama").native
    (theirs, ours), hidden = (tree_heads(cls, target) for _ in range(2)), torch.randn(1, 42)
    run_natively(ours, native_of)
    run_natively(ours.target.reduced, native_of)
    text, states = torch.arange(24).reshape(2, 12), torch.randn(2, 12, 42)
    assert torch.equal(ours.ranks(text, states), theirs.ranks(text, states))
    threads.use(count)
    try:
        said = filled(ours, hidden)
    finally:
        threads.use(1)
    wanted = filled(theirs, hidden)
    assert [len(level) for level in said] == [1, 2] if cls is HydraHeads else [1, 1]
    for one, other in zip(said, wanted, strict=True):
        same(one, other)
    next(p for name, p in theirs.named_parameters() if name.endswith("weight")).mul_(1.05)
    with pytest.raises(AssertionError, match="not close"):  # the twin
        same(said[0], filled(theirs, hidden)[0])


# ----------------------------------------------------------------------------------------------------------- what it leaves
@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_probe_of_a_cache_passes(architecture: str) -> None:
    model = native(architecture)
    probe_rollback(model, "target", architecture)
    assert model.tree_refusal is None


@pytest.mark.parametrize(
    ("config", "dtype", "device", "reason"),
    [
        (tiny.config("gemma3"), "float32", "cpu", "not gemma3_text"),
        (tiny.config("gpt2"), "float32", "cpu", "not gpt2"),
        (tiny.config("llama"), "bfloat16", "cpu", "not in bfloat16"),
        (tiny.config("llama"), "float32", "cuda:0", "not on cuda:0"),
        (LlamaConfig(hidden_act="gelu"), "float32", "cpu", "not gelu"),
        (
            LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            "float32",
            "cpu",
            "not dynamic",
        ),
    ],
)
def test_models_that_it_would_compute_wrong_are_refused(config: Any, dtype: str, device: str, reason: str) -> None:
    assert reason in (refusal(config, dtype, device) or "")


def builtin_pair() -> PairSpec:
    return specify(PairConfig(target="builtin:target", draft="builtin:draft", target_device="cpu", draft_device="cpu"))


def test_both_models_run_on_one_backend(tmp_path: Path) -> None:
    pair, instead = choose_backend(builtin_pair(), "auto")
    assert pair.draft is not None and pair.target.backend == pair.draft.backend == "native" and instead is None
    assert choose_backend(builtin_pair(), "eager") == (builtin_pair(), None)
    other = tiny.save(tmp_path / "gpt2", tiny.module("gpt2"))
    mixed = specify(PairConfig(target="builtin:target", draft=str(other), target_device="cpu", draft_device="cpu"))
    assert choose_backend(mixed, "auto") == (mixed, None)
    left, instead = choose_backend(mixed, "native")
    assert left == mixed and "eager runs instead" in str(instead) and "not gpt2" in str(instead)


@pytest.fixture
def fresh_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing built, nothing remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for remembered in (build.library, build.compiler):
        monkeypatch.setattr(build, remembered.__name__, remembered.__wrapped__)
    return tmp_path


def test_without_a_compiler_one_line_says_so(fresh_build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(fresh_build))
    monkeypatch.delenv("CXX", raising=False)
    for wanted in ("native", "auto"):
        pair, instead = choose_backend(builtin_pair(), wanted)
        assert pair.target.backend == "eager" and "no C++ compiler" in str(instead) and "\n" not in str(instead)


def test_a_compiler_that_fails_leaves_nothing_behind(fresh_build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = fresh_build / "broken"
    compiler.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'x.cpp:1: error: no' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(build.CannotBuildError, match=r"failed: x\.cpp:1: error: no"):
        build.build("portable")
    assert list(build.cache_folder().iterdir()) == []


@pytest.mark.parametrize("found", [b"", b"\x7fELF, and the rest was never written"])
def test_a_library_that_does_not_load_is_built_anew(fresh_build: Path, monkeypatch: pytest.MonkeyPatch, found: bytes) -> None:
    """Half a file, or one of another host's system; where what is built anew does not load either, one line says so."""
    good, bad, compiler = native("llama").native.library._name, fresh_build / "half.so", fresh_build / "copies"
    compiler.write_text('#!/bin/sh\nwhile [ $# -gt 1 ]; do [ "$1" = -o ] && cp "$FROM" "$2"; shift; done\n')
    compiler.chmod(0o755)
    bad.write_bytes(found)
    monkeypatch.setattr(build, "loaded", [])
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("FROM", str(bad))
    pair, instead = choose_backend(builtin_pair(), "auto")
    assert pair.target.backend == "eager" and "does not load" in str(instead) and "\n" not in str(instead)
    assert build.build(build.instruction_set()).read_bytes() == found
    monkeypatch.setenv("FROM", good)
    assert build.library().sb_sizes(0) > 0


def test_without_a_home_nothing_is_kept_below_where_one_stands(fresh_build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(build.os.path, "expanduser", lambda path: path)  # what it does for a user without a home
    monkeypatch.chdir(fresh_build)
    with pytest.raises(build.CannotBuildError, match="XDG_CACHE_HOME"):
        build.cache_folder()
    assert list(fresh_build.iterdir()) == []


def test_a_cache_that_others_may_write_to_is_not_run_from(fresh_build: Path) -> None:
    folder = build.cache_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    with pytest.raises(build.CannotBuildError, match="make it private"):
        build.cache_folder()


def test_a_target_is_opened_on_its_models_backend() -> None:
    assert isinstance(open_target(native("llama")), NativeSession) and native("llama").backend == "native"
    assert type(open_target(model_of("llama"))) is Session and model_of("llama").backend == "eager"

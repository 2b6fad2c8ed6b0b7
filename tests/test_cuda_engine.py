"""On an accelerator: sessions and clock. What is asserted on a CPU bit by bit is compared here with the CPU in float32.

Tolerances. A tiny model's logits are sums of some hundred products of size 1: float32 on two kinds of hardware, which add in
different orders, differs by some 1e-6; 1e-4 leaves room and is a hundredth of what a wrong mask, position or row changes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from specbench.config.schema import PairConfig
from specbench.config.specs import PairSpec
from specbench.engine.branching import BranchingSession
from specbench.engine.model import Model
from specbench.engine.probe import probe_rollback
from specbench.engine.sampling import SamplingLaw, noise_key
from specbench.engine.session import Session
from specbench.engine.tree import DraftTree, Feedback, Riders, Verdict
from specbench.measure import lossless
from specbench.measure.sensors import clock
from specbench.methods.chains.autoregressive import Autoregressive
from specbench.pair.load import eos_ids, load_model, load_tokenizer
from specbench.pair.spec import resolve_device, specify

pytestmark = pytest.mark.gpu

DEVICE = "cuda:0"
TOLERANCE = 1e-4
PARENTS = [-1, -1, 0, 1, 0, 2, 2, 5]
PATH = (0, 2, 6)  # no leading run of rows: the cache must gather
TOKENS = 48
STANDIN = Path(__file__).resolve().parents[1] / "datasets" / "standin" / "humaneval.jsonl"


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(ours.float().cpu(), theirs.float(), atol=tolerance, rtol=tolerance)


def history(session: Session, reference: Any, check: Any = close) -> None:
    """Prefill, a tree, a kept branch, a second tree, a chain, a rollback: every logit against fresh forwards on the CPU."""

    def fresh(ids: Sequence[int]) -> torch.Tensor:
        return tiny.plain_forward(reference, ids, session.model.vocab_size)

    prompt, nodes, others = tiny.prompt(9), tiny.prompt(len(PARENTS), seed=3), tiny.prompt(7, seed=5)
    session.start(64)
    check(session.prefill(prompt).logits, fresh(prompt)[-1:])
    session.pending = 7
    logits = session.forward(DraftTree(nodes, PARENTS)).logits
    for node, parent in enumerate(PARENTS):
        path = [node]
        while parent >= 0:
            path, parent = [parent, *path], PARENTS[parent]
        check(logits[node + 1], fresh([*prompt, 7, *(nodes[i] for i in path)])[-1])
    kept = [nodes[node] for node in PATH]
    session.commit(Verdict(PATH, (*kept, 11)))
    committed = [*prompt, 7, *kept]
    assert session.length == len(committed)
    second = session.forward(DraftTree([20, 21, 22], [-1, -1, 1])).logits
    check(second[3], fresh([*committed, 11, 21, 22])[-1])
    session.commit(Verdict((1, 2), (21, 22, 5)))
    committed += [11, 21, 22, 5]
    check(session.forward(DraftTree([1, 2, 3])).logits, fresh([*committed, 1, 2, 3])[-4:])
    session.rollback(10)
    check(session.feed(others), fresh([*committed[:10], *others])[10:])


def on_device(module: Any) -> Model:
    import copy

    return Model.wrap(copy.deepcopy(module).to(DEVICE))


# ------------------------------------------------------------------------------------------------------------ sessions
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_sessions_equal_fresh_forwards_on_the_cpu(architecture: str, attention: str) -> None:
    reference = tiny.module(architecture, attention=attention)
    model = on_device(reference)
    assert str(model.device) == DEVICE
    history(Session(model), reference)


def test_the_comparison_sees_a_cache_that_forgets_to_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""
    from specbench.engine.cache import KVCache

    reference = tiny.module("llama")
    monkeypatch.setattr(KVCache, "keep_rows", lambda self, start, rows: self.rollback(start + len(rows)))
    with pytest.raises(AssertionError, match="not close"):
        history(Session(on_device(reference)), reference)


def test_taps_lie_on_the_device_and_follow_the_accepted_path() -> None:
    reference = tiny.module("llama")
    session = Session(on_device(reference), taps=(-1,))
    session.start(32)
    prompt, nodes = tiny.prompt(9), tiny.prompt(len(PARENTS), seed=3)
    session.prefill(prompt)
    session.pending = 7
    tree, kept = DraftTree(nodes, PARENTS), [nodes[node] for node in PATH]
    evidence, verdict = session.forward(tree), Verdict(PATH, (*kept, 11))
    session.commit(verdict)
    committed = Feedback(tree, evidence, verdict).tap(-1)
    with torch.inference_mode():
        hidden = reference(torch.tensor([[*prompt, 7, *kept]]), output_hidden_states=True).hidden_states[-1][0, -4:]
    assert str(committed.device) == DEVICE
    close(committed, hidden)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_riders_layers_and_branches_equal_fresh_forwards_on_the_cpu(architecture: str) -> None:
    reference = tiny.module(architecture, layers=3)
    model, prompt = on_device(reference), tiny.prompt(9)

    def fresh(*ids: int) -> torch.Tensor:
        return tiny.plain_forward(reference, [*prompt, *ids], model.vocab_size)[-1]

    session = Session(model)
    session.start(64)
    session.prefill(prompt)
    session.pending = 7
    evidence = session.forward(DraftTree([20, 21], [-1, -1], riders=Riders([1, 2], [3, 4])))
    assert evidence.riders is not None and str(evidence.riders.device) == DEVICE
    close(evidence.logits[2], fresh(7, 21))
    close(evidence.riders[1], fresh(7, 21, 3, 4))
    session.commit(Verdict((1,), (21, 5)))
    hidden = torch.cat([session.run_layers([token], 0, 2) for token in (5, 6)])
    close(session.forward(DraftTree([6], start_layer=2, hidden=hidden)).logits[1], fresh(7, 21, 5, 6))
    session.commit(Verdict((0,), (6, 8)))
    mark = session.mark()
    session.fork((1,)).feed([8])
    session.restore(mark)
    close(session.forward(DraftTree([9])).logits[1], fresh(7, 21, 5, 6, 8, 9))

    draft = BranchingSession(model)
    draft.start(64)
    draft.feed(prompt)
    draft.branch()
    draft.grow([1, 2], [-1, -1])
    close(draft.grow([3, 4], [1, 0])[0], fresh(2, 3))
    draft.keep([1, 2])
    close(draft.feed([6])[0], fresh(2, 3, 6))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_same_tokens_are_chosen_on_both_devices(temperature: float) -> None:
    """Keyed noise is a pure function of key, position and id: hardware must not enter into the choice."""
    logits = 3 * torch.randn((32, 4096), generator=torch.Generator().manual_seed(0))
    law, key = SamplingLaw(temperature), noise_key(0, "x", 0)
    assert law.choose(logits.to(DEVICE), range(32), key) == law.choose(logits, range(32), key)


def test_devices_are_chosen_as_documented() -> None:
    second = "cuda:1" if torch.cuda.device_count() > 1 else "cuda:0"
    assert resolve_device("auto", "target", "k") == "cuda:0" and resolve_device("auto", "draft", "k") == second
    assert resolve_device("cuda", "draft", "k") == "cuda:0"
    chosen = specify(PairConfig(target="builtin:target", draft="builtin:draft"))
    assert chosen.target.dtype == "bfloat16", "auto: bfloat16 on an accelerator"


# ---------------------------------------------------------------------------------------------------- the built-in pair
LOADED: dict[str, tuple[PairSpec, Model, Any]] = {}


def builtin(dtype: str) -> tuple[PairSpec, Model, Any]:
    if dtype not in LOADED:
        devices = {"target_device": DEVICE, "draft_device": DEVICE, "target_dtype": dtype, "draft_dtype": dtype}
        spec = specify(PairConfig(target="builtin:target", draft="builtin:draft", **devices))
        LOADED[dtype] = (spec, load_model(spec.target), load_tokenizer(spec.target))
    return LOADED[dtype]


def prompts_of(tokenizer: Any, count: int = 4) -> list[list[int]]:
    return [tokenizer(json.loads(line)["prompt"]).input_ids for line in STANDIN.read_text().splitlines()[:count]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_built_in_models_pass_the_probe_of_their_cache(dtype: str) -> None:
    spec, target, _ = builtin(dtype)
    assert target.dtype == getattr(torch, dtype) and str(target.device) == DEVICE
    probe_rollback(target, "target", spec.target.name)
    assert spec.draft is not None
    draft = load_model(spec.draft)
    probe_rollback(draft, "draft", spec.draft.name)
    assert target.tree_refusal is None and draft.tree_refusal is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_autoregression_equals_generate(dtype: str) -> None:
    """In float32 token for token; in bfloat16 up to a tie of the two best logits, since generate's cache has other kernels."""
    spec, target, tokenizer = builtin(dtype)
    ends = eos_ids(target.module, tokenizer)
    for prompt in prompts_of(tokenizer):
        around = tiny.runtime(target, max_new_tokens=TOKENS, eos_ids=ends)
        around.pair = PairSpec(spec.name, spec.target, None, target.vocab_size)
        ours = tiny.decode(Autoregressive(), around, prompt).output_ids
        ids = torch.tensor([prompt], device=DEVICE)
        with torch.inference_mode():
            made = target.module.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0
            )
        theirs = made[0, len(prompt) :].tolist()
        position = lossless.first_difference(ours, theirs)
        if position is not None:
            session = Session(target)
            session.start(len(prompt) + TOKENS)
            logits = session.feed([*prompt, *ours[:position]], last_only=True)[0].float()
            assert position < min(len(ours), len(theirs)), (ours, theirs)
            gap = float(logits.max() - min(logits[ours[position]], logits[theirs[position]]))
            assert gap <= lossless.tolerance_of(dtype), f"position {position}: {ours[position]} and {theirs[position]}, {gap}"


# -------------------------------------------------------------------------------------------------------------- the clock
def busy_work(seconds: float) -> Any:
    """A function that queues about so many seconds of matrix products and returns at once."""
    matrix = torch.randn((4096, 4096), device=DEVICE)
    out = torch.empty_like(matrix)
    torch.mm(matrix, matrix, out=out)
    torch.cuda.synchronize(DEVICE)
    begin = clock.now()
    for _ in range(20):
        torch.mm(matrix, matrix, out=out)
    torch.cuda.synchronize(DEVICE)
    count = max(1, round(seconds / ((clock.now() - begin) / 20)))

    def work() -> None:
        for _ in range(count):
            torch.mm(matrix, matrix, out=out)

    return work


def test_events_see_queued_work_that_host_stamps_miss() -> None:
    work = busy_work(0.3)
    timer = clock.clock_for(DEVICE)
    assert isinstance(timer, clock.CudaClock)
    timer.synchronize()
    begin = clock.now()
    stamps = [timer.stamp()]
    work()
    stamps.append(timer.stamp())
    queued = clock.now() - begin
    work()
    stamps.append(timer.stamp())
    seconds = timer.seconds(stamps)
    whole = clock.now() - begin
    assert seconds[0] == 0.0 and seconds[1] == pytest.approx(seconds[2] - seconds[1], rel=0.2)
    assert seconds[2] == pytest.approx(whole, rel=0.1)
    assert queued < seconds[1] / 2, "the twin: a host stamp without synchronisation sees the launches alone"


def test_prefill_and_decode_are_the_wall_time_of_a_sample() -> None:
    spec, target, tokenizer = builtin("float32")
    around = tiny.runtime(target, max_new_tokens=TOKENS)
    around.pair = PairSpec(spec.name, spec.target, None, target.vocab_size)
    method, prompt = tiny.opened(Autoregressive(), around), prompts_of(tokenizer, 1)[0]
    for _ in range(2):  # the first one pays for the kernels
        torch.cuda.synchronize(DEVICE)
        begin = clock.now()
        outcome = method.decode(tiny.request(around, prompt))
        wall = clock.now() - begin
    inside = outcome.prefill_seconds + outcome.decode_seconds
    assert inside <= wall + 1e-3 and inside == pytest.approx(wall, rel=0.1)
    rounds = outcome.rounds
    assert sum(r.t_end - r.t_start for r in rounds) == pytest.approx(outcome.decode_seconds, rel=0.01)
    assert all(r.draft_seconds >= 0 and r.verify_seconds > 0 for r in rounds)
    assert sum(r.draft_seconds + r.verify_seconds for r in rounds) <= outcome.decode_seconds * 1.01


def test_peaks_of_device_memory_are_counted_from_the_reset_on() -> None:
    big = torch.empty(256 * 2**20, dtype=torch.uint8, device=DEVICE)
    del big
    assert (clock.memory_peak_bytes(DEVICE) or 0) >= 256 * 2**20
    clock.reset_memory_peak(DEVICE)
    now = torch.cuda.memory_allocated(DEVICE)
    assert clock.memory_peak_bytes(DEVICE) == now
    small = torch.empty(16 * 2**20, dtype=torch.uint8, device=DEVICE)
    assert (clock.memory_peak_bytes(DEVICE) or 0) >= now + 16 * 2**20
    del small

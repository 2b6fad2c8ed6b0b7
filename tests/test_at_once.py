"""A draft's chain as one program, and the target's forward with its own choice as another (`engine.backends.programs`).

A CUDA graph is recorded once and writes to the same places ever after; `replayed` stands in for it: what it answers lies where
the last answer lay.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import tiny
import torch
from interleaving import Timing, interleave

from specbench.engine.backends import captures, programs
from specbench.engine.backends.fixed import Capture, FixedSession
from specbench.engine.backends.native import build
from specbench.engine.model import Model
from specbench.engine.request import Outcome
from specbench.engine.sampling import SamplingLaw, noise_key
from specbench.engine.session import Session
from specbench.engine.target import open_session
from specbench.engine.tree import DraftTree, Unread, Verdict
from specbench.method import Method
from specbench.methods.chains.autoregressive import Autoregressive
from specbench.methods.chains.speculative import Speculative
from specbench.parts.rules.rule import RULES
from specbench.parts.schedules.free_running import draft as free_draft
from specbench.parts.schedules.free_running import verify as free_verify
from specbench.parts.schedules.lockstep import draft as block_draft
from specbench.parts.schedules.lockstep import verify as block_verify
from specbench.parts.schedules.lockstep.plan import Plan
from specbench.processes.mailbox import Mailbox
from specbench.processes.steps import Order

LAWS = {"greedy": SamplingLaw(), "sampled": SamplingLaw(0.7), "cut": SamplingLaw(1.3, top_k=20, top_p=0.9)}
KEY = noise_key(0, "x", 0)


def replayed(step: Any) -> Any:
    """The step as a graph would run it: once recorded, its answers stand in the same tensors."""
    answer = step()
    flat = torch.utils._pytree.tree_leaves(answer)

    def replay() -> Any:
        for place, new in zip(flat, torch.utils._pytree.tree_leaves(step()), strict=True):
            if isinstance(place, torch.Tensor):
                place.copy_(new)
        return answer

    return replay


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(captures.CAPTURES, "replayed", Capture(replayed, at_once=True))
    monkeypatch.setitem(captures.CAPTURES, "by_token", Capture(replayed))


def models(architecture: str, capture: str | None, noise: float = 0.3) -> tuple[Model, Model]:
    target = tiny.model(architecture)
    draft = replace(Model.wrap(tiny.noisy_copy(target.module, noise)), is_draft=True)
    return replace(target, fixed=capture), replace(draft, fixed=capture)


def decoded(
    method: Method, capture: str | None, law: SamplingLaw, architecture: str = "llama", device: str = "cpu"
) -> list[Outcome]:
    """Three prompts, one of them twice: what is met in the first sample is a program in the next."""
    made = models(architecture, capture)
    for model in made:
        model.module.to(device)
    around = tiny.runtime(*made, law=law, max_new_tokens=22)
    tiny.opened(method, around)
    try:
        return [method.decode(tiny.request(around, tiny.prompt(5 + n, n), str(n))) for n in (0, 1, 2, 0)]
    finally:
        method.close()


def told(outcomes: Sequence[Outcome]) -> list[Any]:
    columns = ("num_drafted", "num_accepted", "num_emitted", "num_draft_forwards", "num_target_rows", "rollback_depth")
    return [(o.output_ids, [[getattr(r, column) for column in columns] for r in o.rounds]) for o in outcomes]


# ------------------------------------------------------------------------------------------------------- the same ids
@pytest.mark.parametrize(
    ("architecture", "law"),
    [
        *(("llama", law) for law in LAWS),
        *((name, "cut") for name in tiny.ARCHITECTURES if name != "llama"),
        *(
            pytest.param(name, law, marks=pytest.mark.slow)  # what a law asks of a row is the same whoever made the row
            for name in tiny.ARCHITECTURES
            if name != "llama"
            for law in ("greedy", "sampled")
        ),
    ],
)
def test_rounds_are_those_of_eager(architecture: str, law: str) -> None:
    said = [told(decoded(Speculative(draft_length=4), capture, LAWS[law], architecture)) for capture in (None, "replayed")]
    assert said[0] == said[1]
    drafted, accepted = (sum(row[place] for _, rounds in said[0] for row in rounds) for place in (0, 1))
    assert 0 < accepted < drafted, "drafts stand, and drafts fall"


@pytest.mark.parametrize("rule", ["delta", "ratio"])
def test_rules_that_need_more_keep_their_way(rule: str) -> None:
    said = [told(decoded(Speculative(draft_length=3, rule=rule), kind, LAWS["sampled"])) for kind in (None, "replayed")]
    assert said[0] == said[1]


@pytest.mark.parametrize("stop", ["fixed", "confidence"])
@pytest.mark.parametrize("compat", [None, "amusd"])
def test_other_drafts_keep_their_rounds(stop: str, compat: str | None) -> None:
    if compat and stop != "fixed":
        pytest.skip("the published baseline has a fixed length")
    made = [Speculative(draft_length=3, stop=stop, compat=compat) for _ in range(2)]
    said = [told(decoded(method, kind, LAWS["greedy"])) for method, kind in zip(made, (None, "replayed"), strict=True)]
    assert said[0] == said[1]


def test_one_that_never_copies_its_noise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twin: the draft keeps the noise of its first round, so it agrees with the target less often."""
    rows = told(decoded(Speculative(draft_length=4), "replayed", LAWS["sampled"]))
    real = programs.keyed_gumbel
    monkeypatch.setattr(programs, "keyed_gumbel", lambda key, positions, *more: real(key, range(len(positions)), *more))
    assert told(decoded(Speculative(draft_length=4), "replayed", LAWS["sampled"])) != rows


@pytest.mark.parametrize("law", ["greedy", "cut"])
def test_a_chain_is_what_the_draft_says_token_by_token(law: str) -> None:
    """Also where more than two rows are behind, where buffers grow, and behind a rollback; too long for a program: None."""
    _, draft = models("llama", "replayed")
    session, reference = open_session(draft), Session(replace(draft, fixed=None))
    assert isinstance(session, FixedSession) and "chain" in session.can and "chain" not in reference.can
    for capacity in (100, 100, 600):
        for one in (session, reference):
            one.start(capacity)
            one.feed(tiny.prompt(7))
        for behind, length in ((1, 3), (2, 3), (2, 1), (5, 4)):
            ids, before = tiny.prompt(behind, seed=behind), session.length
            found = session.chain(ids, length, LAWS[law], 9, KEY)
            assert isinstance(found, Unread) and len(found) == length
            expected: list[int] = []
            fed = ids
            for place in range(length):
                fed = LAWS[law].choose(reference.feed(fed, last_only=True), [9 + place], KEY)
                expected += fed
            assert list(found) == expected and session.length == reference.length == before + behind + length - 1
            for one in (session, reference):
                one.rollback(before + 1)
    assert session.chain([1], programs.MAX_ROWS, LAWS[law], 9, KEY) is None


def test_taps_and_logits_of_a_verified_chain_are_those_of_a_forward() -> None:
    target, _ = models("llama", "replayed")
    session, reference = open_session(target, (0, -1)), Session(replace(target, fixed=None), (0, -1))
    assert isinstance(session, FixedSession)
    kept = []
    for _ in range(2):
        for one in (session, reference):
            one.start(100)
            one.pending = int(one.prefill(tiny.prompt(9)).logits.argmax())
        for drafts in ([3, 4, 5], [], [6, 7, 8]):
            tree = DraftTree(drafts)
            found, expected = session.forward_and_choose(tree, LAWS["greedy"], 1, KEY), reference.forward(tree)
            torch.testing.assert_close(found.logits, expected.logits)
            for tap in (0, -1):
                torch.testing.assert_close(found.taps[tap], expected.taps[tap])
            assert found.own is not None and found.own.tokens == expected.logits.argmax(-1).tolist()
            kept.append((found.logits, found.logits.clone()))
            for one in (session, reference):
                one.commit(Verdict((0,), (3, 9)) if drafts else Verdict((), (2,)))
    assert all(torch.equal(one, other) for one, other in kept), "what was answered is not written over"
    assert len(session._programs) == 2
    long = DraftTree(tiny.prompt(programs.MAX_ROWS))
    session.start(200)
    session.pending = int(session.prefill(tiny.prompt(9)).logits.argmax())
    assert session.forward_and_choose(long, LAWS["greedy"], 1, KEY).own is None


def test_a_model_that_a_script_speaks_for_has_no_chain() -> None:
    class Scripted(Model):
        def answer(self, logits: torch.Tensor, past: int, rows: int) -> torch.Tensor:
            return logits

    target, _ = models("llama", "replayed")
    assert not {"chain", "choice"} & open_session(Scripted(**vars(target))).can
    assert not {"chain", "choice"} & open_session(replace(target, fixed="by_token")).can


@pytest.mark.parametrize("law", ["greedy", "sampled"])
@pytest.mark.parametrize("schedule", ["lockstep", "free-running"])
def test_targets_beside_a_worker_choose_at_once_too(schedule: str, law: str) -> None:
    """PEARL's and AMUSD's sides, in one process: the target's own text, whose choices came with the forwards."""
    target, draft = models("llama", "replayed")
    around = tiny.runtime(replace(target, fixed=None), law=LAWS[law], max_new_tokens=20)
    request = tiny.request(around, tiny.prompt(6))
    mailbox, rule, session = Mailbox.local(), RULES["sample_match"], open_session(target)
    sides: list[Any]
    if schedule == "lockstep":
        sides = [block_verify.Verifier(mailbox, around.law, rule, session), block_draft.DraftSide(mailbox, around.law, "keyed")]
    else:
        sides = [
            free_verify.Verifier(mailbox, around.law, rule, 2, "plain", session),
            free_draft.DraftSide(mailbox, around.law, 4),
        ]
    sides[1].open(draft)
    for number in (1, 2):
        order = Plan(number, request, 3) if schedule == "lockstep" else Order(number, request)
        for side in sides:
            side.prepare(order)
        interleave(sides, random.Random(number), Timing(0.5))
        assert sides[0].books.output == tiny.decode(Autoregressive(), around, request.prompt_ids).output_ids
    assert isinstance(session, FixedSession)
    assert {type(program) for program in session._programs.values()} == {programs.Verify}


# ------------------------------------------------------------------------------------------------ what makes no law
@pytest.mark.parametrize("broken", ["draft", "target"])
def test_logits_without_a_law_are_refused(broken: str) -> None:
    target, draft = models("llama", "replayed")
    (draft if broken == "draft" else target).module.lm_head.weight[3] = torch.nan
    method = tiny.opened(Speculative(draft_length=3), around := tiny.runtime(target, draft, max_new_tokens=12))
    if broken == "target":
        session = around.target and method.setting.target  # type: ignore[attr-defined]
        session.start(40)
        session.feed([1, 2, 3])
        session.pending = 4
        with pytest.raises(ValueError, match="NaN or infinity"):
            session.forward_and_choose(DraftTree([1]), around.law, 1, KEY)
    else:
        with pytest.raises(ValueError, match="NaN or infinity"):
            method.decode(tiny.request(around, [1, 2, 3]))


def test_unread_ids_are_looked_at_once_and_checked() -> None:
    ids = Unread(torch.tensor([3, 4, 5]), below=6)
    assert repr(ids) == "Unread(3)" and len(ids) == 3
    DraftTree(ids).refuse_impossible(5, 5, 6)
    assert repr(ids) == "Unread(3)", "checked without a look at them"
    assert ids == [3, 4, 5] and ids[1:] == [4, 5] and repr(ids) == "[3, 4, 5]"
    with pytest.raises(ValueError, match="id 5 was drafted"):
        DraftTree(Unread(torch.tensor([3, 4, 5]), below=6)).refuse_impossible(5, 5, 5)
    with pytest.raises(ValueError, match="NaN or infinity"):
        list(Unread(torch.tensor([3, -1]), below=6))


# ------------------------------------------------------------------------------------------- one wait a round
READS = ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")


@contextmanager
def reads(patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Whatever takes numbers from a tensor to the host; the noise, which a CPU makes in numpy, left out."""
    found: list[str] = []
    silent = [0]
    patch.setattr(build, "loaded", [])  # where another test has loaded it, the native library reads a CPU's rows unseen

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: torch.Tensor, *values: Any, **more: Any) -> Any:
            if not silent[0]:
                found.append(name)
            silent[0] += 1  # one of these may call another
            try:
                return real(self, *values, **more)
            finally:
                silent[0] -= 1

        return call

    for name in READS:
        patch.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
    for module in ("specbench.engine.sampling", "specbench.engine.backends.programs"):
        real = programs.keyed_gumbel

        def noise(*values: Any, real: Any = real) -> torch.Tensor:
            silent[0] += 1
            try:
                return real(*values)
            finally:
                silent[0] -= 1

        patch.setattr(f"{module}.keyed_gumbel", noise)
    yield found


def reads_by_round(method: Method, kind: str, law: SamplingLaw) -> list[int]:
    """Host reads of each round of the second sample."""
    counts: list[int] = []
    around = tiny.runtime(*models("llama", kind), law=law, max_new_tokens=30)
    tiny.opened(method, around)
    method.decode(tiny.request(around, tiny.prompt(6)))
    with pytest.MonkeyPatch.context() as patch, reads(patch) as found:
        around.alive = lambda: counts.append(len(found))
        method.decode(tiny.request(around, tiny.prompt(6)))
    return [after - before for before, after in pairwise(counts)]


@pytest.mark.parametrize("law", LAWS)
def test_a_round_reads_once(law: str) -> None:
    counts = reads_by_round(Speculative(draft_length=4), "replayed", LAWS[law])
    assert counts and set(counts) == {1}
    assert set(reads_by_round(Autoregressive(), "replayed", LAWS[law])) == {1}


@pytest.mark.parametrize("law", ["greedy", "sampled"])
def test_by_token_a_round_reads_for_each(law: str) -> None:
    """The twin: the way of before."""
    counts = reads_by_round(Speculative(draft_length=4), "by_token", LAWS[law])
    assert max(counts) == 5 and counts.count(5) > len(counts) / 2


# ------------------------------------------------------------------------------------- what a recording would refuse
class OfAGraph(torch.utils._python_dispatch.TorchDispatchMode):
    """Raises for what waits for a device or crosses between one and the host: no CUDA graph can hold it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "unique2"), name
        if name in ("_to_copy", "copy_"):
            devices = {t.device.type for t in args if isinstance(t, torch.Tensor)}
            devices |= {kwargs["device"].type} if kwargs.get("device") is not None else set()
            assert len(devices) == 1, f"{name} between {devices}"
        return func(*args, **kwargs)


def as_if_recorded(of: str, law: SamplingLaw, architecture: str = "llama") -> None:
    """A step on tensors of another device than the host's that hold nothing: what asks for a number fails."""
    module = tiny.module(architecture).to("meta")
    session = open_session(replace(Model.wrap(module), fixed="replayed"))
    assert isinstance(session, FixedSession) and session.model.device.type == "meta"
    session.start(100)
    for layer in session.cache.layers:
        none = torch.zeros((1, module.config.num_key_value_heads, 1, module.config.head_dim), device="meta")
        layer.lazy_initialization(none, none)
    program = programs.Chain(session, law, 2, 3) if of == "chain" else programs.Verify(session, law, 4)
    with torch.inference_mode(), OfAGraph():
        answer = program.step()
    assert all(t.device.type == "meta" for t in torch.utils._pytree.tree_leaves(answer) if isinstance(t, torch.Tensor))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("of", ["chain", "verify"])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3"])
def test_no_step_asks_the_device_for_a_number(of: str, law: str, architecture: str) -> None:
    as_if_recorded(of, LAWS[law], architecture)


@pytest.mark.parametrize(
    ("fault", "match"), [("reads", "meta tensors|_local_scalar"), ("from the host", "lift_fresh"), ("shape", "nonzero")]
)
def test_a_step_that_waits_for_the_device_is_found(fault: str, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""

    def bad(scores: torch.Tensor) -> torch.Tensor:
        best = scores.argmax(-1)
        if fault == "reads":
            return best.new_full((len(best),), int(best[0]))
        if fault == "from the host":
            return best + torch.tensor([1] * len(best)).to(best.device)
        return best[best > 0]

    monkeypatch.setattr(programs, "chosen", bad)
    with pytest.raises((AssertionError, RuntimeError), match=match):
        as_if_recorded("chain", LAWS["greedy"])


@pytest.mark.slow
def test_steps_compile_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile makes one graph of each, which it could not of one that asks for a number; and it says the same ids."""

    def whole(step: Any) -> Any:
        return torch.compile(step, dynamic=False, fullgraph=True)

    monkeypatch.setitem(captures.CAPTURES, "whole", Capture(whole, at_once=True))
    said = [told(decoded(Speculative(draft_length=2), kind, LAWS["sampled"])) for kind in (None, "whole")]
    assert said[0] == said[1]

"""Forwards of fixed shapes (torch.compile, CUDA graphs): transformers' logits whatever is fed, and who is refused.

A graph's capture and replay are its own class; everything around it runs here with a capture that replays the step as written.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import random_signals
import tiny
import torch
from preloaded import Started
from test_native import builtin_pair, drawn, model_of, same
from test_worker import children, gone, wait_for
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from transformers import AutoModelForCausalLM, BloomConfig

from specbench.config.options import ConfigError
from specbench.config.schema import PairConfig
from specbench.engine.backends import captures, fixed, programs
from specbench.engine.backends.fixed import Capture, FixedBranching, FixedSession
from specbench.engine.branching import Branching
from specbench.engine.model import Model
from specbench.engine.request import Request
from specbench.engine.session import Session
from specbench.engine.target import open_branching, open_session
from specbench.engine.tree import DraftTree, Riders, Verdict
from specbench.measure.records.events import Round
from specbench.methods.chains.speculative import Speculative
from specbench.pair.backend import choose_backend
from specbench.pair.spec import specify
from specbench.parts.drafts.model import ModelDraft
from specbench.parts.schedules.books import Books


def check_fixed(model: Model) -> list[Any]:
    """Two sequences: rows run as written in the first, and by programs in the second; logits, taps and branches of both."""
    taps = (0, 2, -1)
    reference, session = Session(model, taps), open_session(model, taps)
    assert isinstance(session, FixedSession)
    tree = DraftTree(drawn(5, model, 1), [-1, 0, 0, 1, 3], riders=Riders([-1, 2], tokens=[5, 6], positions=[1, 4]))
    for _ in range(2):
        for one in (reference, session):
            one.start(300)
            one.pending = int(one.prefill(drawn(37, model)).logits.argmax())
        expected, found = reference.forward(tree), session.forward(tree)
        same(found.logits, expected.logits)
        same(found.riders, expected.riders)  # type: ignore[arg-type]
        for layer in taps:
            same(found.taps[layer], expected.taps[layer])
        for one in (reference, session):
            one.commit(Verdict((0, 1, 3, 4), (*(tree.tokens[n] for n in (0, 1, 3, 4)), 11)))
        kept = session.feed([3])
        same(kept, reference.feed([3]))
        before = kept.clone()
        same(session.feed([4, 5, 6]), reference.feed([4, 5, 6]))
        for one in (reference, session):
            one.rollback(one.length - 2)
        same(session.feed([8]), reference.feed([8]))
        assert torch.equal(kept, before), "what was answered is not written over"
        assert session.length == reference.length
    assert set(session._programs) == {1, 3, 8}
    return [session, reference]


def fixed_model(architecture: str, capture: str = "as_written") -> Model:
    return replace(model_of(architecture), fixed=capture)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral"])
def test_programs_say_what_transformers_says(architecture: str) -> None:
    session, reference = check_fixed(fixed_model(architecture))
    session.start(2000)  # other buffers: other programs
    reference.start(2000)
    for one in (reference, session):
        one.feed(drawn(300, one.model), last_only=True)
    same(session.feed([9]), reference.feed([9]))
    session.start(100)
    session.feed(drawn(12, session.model), last_only=True)
    session.warm([2])
    assert set(session._programs) == {1, 2, 3, 8} and session.length == 12


def _without_mask(self: Any, ids: torch.Tensor, positions: torch.Tensor, mask: Any, real: Any = programs.Rows.__call__) -> Any:
    return real(self, ids, positions, None)


def _in_place(step: Any) -> Any:
    """As a graph does: the answer stands where the last one stood. Here nobody copies it."""
    first = step()[0]

    class Answer:
        def clone(self) -> torch.Tensor:
            return first

    def replay() -> Any:
        logits, hidden = step()
        first.copy_(logits)
        return Answer(), hidden

    return replay


@pytest.mark.parametrize("fault", ["mask", "clone"])
def test_a_program_with_a_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""
    if fault == "mask":
        monkeypatch.setattr(programs.Rows, "__call__", _without_mask)
    else:
        monkeypatch.setitem(captures.CAPTURES, "as_written", Capture(_in_place))
    with pytest.raises(AssertionError, match="not close" if fault == "mask" else "written over"):
        check_fixed(fixed_model("llama"))


def test_a_draft_grows_a_tree_by_programs() -> None:
    said = []
    for kind in (Session, FixedSession):
        model = model_of("qwen3") if kind is Session else fixed_model("qwen3")
        session = open_branching(model)
        assert isinstance(session, Branching) and isinstance(session, FixedBranching) == (kind is FixedSession)
        for _ in range(2):
            session.start(256)
            session.feed(drawn(37, model), last_only=True)
            session.branch()
            grown = [session.grow([3, 4, 5], [-1, -1, -1]), session.grow([6, 7], [1, 1]), session.grow([8], [4])]
            session.keep([1, 4, 5])
            said.append([*grown, session.feed([9, 10])])
    for one, other in zip(said[1], said[3], strict=True):
        same(other, one)


def test_speculative_decoding_keeps_its_rounds() -> None:
    target, draft = tiny.bare(tiny.VOCAB, seed=0, spread=4.0), tiny.bare(tiny.VOCAB, seed=0, spread=4.2)
    rounds: list[list[list[Round]]] = []
    for capture in (None, "as_written"):
        around = tiny.runtime(replace(target, fixed=capture), replace(draft, fixed=capture), max_new_tokens=20)
        method = tiny.opened(Speculative(draft_length=3), around)
        outcomes = [method.decode(tiny.request(around, tiny.prompt(5, seed))) for seed in range(3)]
        rounds.append([(o.output_ids, [r.num_accepted for r in o.rounds]) for o in outcomes])  # type: ignore[misc]
    assert rounds[0] == rounds[1]


def made_on_the_clock(threads: Sequence[int], monkeypatch: pytest.MonkeyPatch, at_once: bool = False) -> tuple[int, int]:
    """Speculative decoding of one sample after the other, each with so many threads: programs made, and those of them that
    were made between the sample's first stamp and its outcome."""
    running, made = [False], []

    def lazily(step: Any) -> Any:
        """As torch.compile does: the work is in the first run with so many threads."""
        ran: set[int] = set()

        def program() -> Any:
            if torch.get_num_threads() not in ran:
                ran.add(torch.get_num_threads())
                made.append(running[0])
            return step()

        return program

    def noted(name: str, to: bool) -> None:
        real = getattr(Books, name)

        def call(self: Books, *values: Any, **more: Any) -> Any:
            running[0] = to
            return real(self, *values, **more)

        monkeypatch.setattr(Books, name, call)

    noted("start", True)
    noted("outcome", False)
    monkeypatch.setitem(captures.CAPTURES, "lazy", Capture(lazily, at_once=at_once))
    target, draft = tiny.bare(tiny.VOCAB, seed=0, spread=4.0), tiny.bare(tiny.VOCAB, seed=0, spread=4.2)
    around = tiny.runtime(replace(target, fixed="lazy"), replace(draft, fixed="lazy"), max_new_tokens=6)
    method, texts, before = tiny.opened(Speculative(draft_length=1), around), set(), torch.get_num_threads()
    try:
        for many in threads:
            torch.set_num_threads(many)
            texts.add(tuple(method.decode(tiny.request(around, tiny.prompt(5))).output_ids))
    finally:
        torch.set_num_threads(before)
    assert len(texts) == 1
    return len(made), sum(made)


@pytest.mark.parametrize("at_once", [False, True])
def test_no_clock_runs_while_programs_are_made(at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the target's, not the draft's, and not where the threads have become others."""
    made, on_the_clock = made_on_the_clock([1, 1, 2, 2, 1], monkeypatch, at_once)
    assert made >= 6 and not on_the_clock


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("fault", ["draft", "threads"])
def test_a_program_that_is_made_while_a_clock_runs_is_found(fault: str, at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: the draft's sequence begins behind the prefill; programs are made without asking for how many threads."""
    if fault == "draft":
        begin = ModelDraft.begin

        def late(self: ModelDraft, request: Request, *more: Any) -> None:
            self.session.start(64)
            begin(self, request, *more)

        monkeypatch.setattr(ModelDraft, "announce", lambda self, request: None)
        monkeypatch.setattr(ModelDraft, "begin", late)
    else:
        ready = programs.Program.make_ready

        def make_ready(self: programs.Program, threads: int, make: Any) -> None:
            ready(self, threads, make)
            self.ready_for |= {1, 2}

        monkeypatch.setattr(programs.Program, "make_ready", make_ready)
    assert made_on_the_clock([1, 1, 2], monkeypatch, at_once)[1] > 0


def test_a_text_stands_when_its_programs_are_made_ready_again() -> None:
    """`warm` comes in the middle of a sequence, behind a change of threads too."""
    model = fixed_model("llama")
    session, before = open_session(model), torch.get_num_threads()
    said = []
    try:
        for many in (1, 1, 3):
            torch.set_num_threads(1)
            session.start(100)
            session.feed(drawn(20, model), last_only=True)
            session.feed([1, 2, 3])
            torch.set_num_threads(many)
            session.warm([3])
            said.append(session.feed([4, 5, 6]))
    finally:
        torch.set_num_threads(before)
    assert session._programs[3].ready_for == {1, 3}  # type: ignore[attr-defined]
    same(said[1], said[0])
    same(said[2], said[1])


def test_what_takes_long_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(captures.CAPTURES, "long", Capture(captures.as_written, layer_seconds=4.0))
    alive: list[int] = []
    for kind in ("long", "as_written"):
        session = open_session(replace(fixed_model("llama", kind), alive=lambda: alive.append(1)))
        session.start(100)
        session.feed(drawn(20, session.model), last_only=True)
        session.warm([1, 3])
        session.start(100)
    session = open_session(fixed_model("llama", "long"))
    monkeypatch.setattr(fixed, "_took", {session.model.module: 7.4})  # of the last that was made of this model
    session.start(100)
    session.feed(drawn(20, session.model), last_only=True)
    session.warm([2])
    about = 4 * session.model.num_cache_layers
    assert capsys.readouterr().err.splitlines() == [
        f"specbench: compiling the target's forwards of 1, 3 rows: about {about} s for each, less where they were kept",
        "specbench: compiled 1 of 2 in 0 s",
        "specbench: compiled 2 of 2 in 0 s",
        "specbench: compiling the target's forwards of 2 rows: as before at most 7 s for each, less where they were kept",
        "specbench: compiled 1 of 1 in 0 s",
    ]
    assert len(alive) == 4, "each of them is a sign of life"


@pytest.mark.slow
def test_compiled_code_is_kept_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for given, expected in ((default_cache_dir(), str(tmp_path / "specbench" / "inductor")), (str(tmp_path), str(tmp_path))):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", given)
        captures.compiled(lambda: None)
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == expected


def compiling(folder: Path, name: str) -> Started:
    """A run on tiny models whose first forwards are compiled, with a cache of its own."""
    line = ["engine=compiled", "method=speculative", "data=humaneval", "data.source=standin", f"runs_dir={folder / name}"]
    line += ["data.limit=1", "decoding.max_new_tokens=8", "engine.threads=1", "measure.power=off", "measure.repeats=1"]
    environment = {"XDG_CACHE_HOME": str(folder), "TORCHINDUCTOR_CACHE_DIR": default_cache_dir()}
    return Started(folder / f"{name} said", random_signals.command_in, environment, [*line, *random_signals.save_pair(folder)])


@pytest.mark.slow
def test_a_second_run_finds_what_the_first_compiled(tmp_path: Path) -> None:
    kept: list[set[str]] = []
    for name in ("first", "second"):
        run = compiling(tmp_path, name)
        try:
            assert run.ended(400) == 0, run.err
        finally:
            run.kill()
        assert "compiling the target's forwards of" in run.err and "compiled 1 of" in run.err
        kept.append({path.name for path in (tmp_path / "specbench" / "inductor").rglob("*.so")})
    assert kept[0] and kept[1] == kept[0], "nothing was compiled again"


@pytest.mark.slow
def test_an_interrupt_while_it_compiles_leaves_nobody(tmp_path: Path) -> None:
    run = compiling(tmp_path, "run")
    try:
        wait_for(lambda: run.ended(0) is not None or "compiling the" in run.err)
        time.sleep(3.0)  # in the middle of it
        below = children(run.pid)
        os.killpg(run.pid, signal.SIGINT)
        ended = run.ended(30)
    finally:
        run.kill()
    assert ended == 130 and run.err.splitlines()[-1] == "specbench: interrupted", run.err
    assert "Traceback" not in run.err and all(gone(child, 5.0) for child in below), run.err


@pytest.mark.slow
def test_compiled_programs_say_what_transformers_says() -> None:
    check_fixed(fixed_model("llama", "compiled"))


def test_who_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"CUDA graphs need both models on CUDA devices, and pair.target is on cpu"):
        choose_backend(builtin_pair(), "graph")
    pair, instead = choose_backend(builtin_pair(), "compiled")
    assert pair.draft is not None and pair.target.backend == pair.draft.backend == "compiled" and instead is None
    bloom = tiny.save(
        tmp_path / "bloom", AutoModelForCausalLM.from_config(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=2))
    )
    odd = specify(PairConfig(target=str(bloom), draft=None, target_device="cpu"))
    left, instead = choose_backend(odd, "compiled")
    assert left == odd and "eager runs instead" in str(instead) and "length of the text" in str(instead)

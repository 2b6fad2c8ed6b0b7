"""Forwards of fixed shapes (torch.compile, CUDA graphs): transformers' logits whatever is fed, and who is refused.

A graph's capture and replay are its own class; everything around it runs here with a capture that replays the step as written.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_native import builtin_pair, drawn, model_of, same
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from transformers import AutoModelForCausalLM, BloomConfig

from specbench.config.options import ConfigError
from specbench.config.schema import PairConfig
from specbench.engine.backends import captures, fixed
from specbench.engine.backends.fixed import FixedBranching, FixedSession
from specbench.engine.branching import Branching
from specbench.engine.model import Model
from specbench.engine.session import Session
from specbench.engine.target import open_branching, open_session
from specbench.engine.tree import DraftTree, Riders, Verdict
from specbench.measure.records.events import Round
from specbench.methods.chains.speculative import Speculative
from specbench.pair.backend import choose_backend
from specbench.pair.spec import specify


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


def _without_mask(self: Any, ids: torch.Tensor, positions: torch.Tensor, mask: Any, real: Any = fixed._Rows.__call__) -> Any:
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
        monkeypatch.setattr(fixed._Rows, "__call__", _without_mask)
    else:
        monkeypatch.setitem(captures.CAPTURES, "as_written", _in_place)
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


@pytest.mark.slow
def test_compiled_code_is_kept_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for given, expected in ((default_cache_dir(), str(tmp_path / "specbench" / "inductor")), (str(tmp_path), str(tmp_path))):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", given)
        captures.compiled(lambda: None)
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == expected


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

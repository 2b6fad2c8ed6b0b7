"""The recurrent backend: a tiny Mamba as target gives its own output whatever is drafted; a state taken up wrongly is found."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import MambaConfig, MambaForCausalLM

from specbench.config.options import ConfigError
from specbench.engine.backends.recurrent import RecurrentSession
from specbench.engine.model import Model
from specbench.engine.probe import probe_rollback
from specbench.engine.sampling import SamplingLaw
from specbench.engine.target import open_target
from specbench.method import Drafter, DraftTree, Evidence, Feedback, Method, Request, Verdict
from specbench.methods.chains.speculative import Speculative
from specbench.methods.layers.layerskip import LayerSkip
from specbench.methods.text.prompt_lookup import PromptLookup

LENGTH = 24


@pytest.fixture(scope="module")
def model() -> Model:
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    sizes = {"vocab_size": tiny.VOCAB, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = MambaForCausalLM(MambaConfig(**sizes, **ends, initializer_range=0.35))
    return Model.wrap(module.eval().requires_grad_(False))


class TwoOfThree(Drafter):
    """Drafts the target's own text, every third token of it wrong."""

    max_nodes = 4  # type: ignore[assignment]

    def __init__(self, text: list[int]):
        self.text = [(token + (place % 3 == 2)) % tiny.VOCAB for place, token in enumerate(text)]

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        self.at = 1

    def propose(self, max_depth: int) -> DraftTree:
        return DraftTree(self.text[self.at : self.at + min(4, max_depth)])

    def observe(self, feedback: Feedback) -> None:
        self.at += len(feedback.verdict.tokens)


def plain_text(model: Model, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    while len(ids) < len(prompt) + LENGTH:
        ids.append(int(tiny.plain_forward(model.module, ids)[-1].argmax()))
    return ids[len(prompt) :]


def test_output_is_the_targets_own_at_any_acceptance(model: Model) -> None:
    probe_rollback(model, "target", "mamba")
    around, prompt = tiny.runtime(model, tiny.model("llama"), max_new_tokens=LENGTH), tiny.prompt(9)
    expected = plain_text(model, prompt)
    for method in (Method(), Speculative(), PromptLookup(), Method(TwoOfThree(expected))):
        outcome = tiny.decode(method, around, prompt)
        assert outcome.output_ids == expected, type(method)
    assert any(0 < r.num_accepted < r.num_drafted for r in outcome.rounds), "a commit in the middle of a draft"


def test_sampled_output_equals_autoregressive_sampling(model: Model) -> None:
    around = tiny.runtime(model, tiny.model("llama"), SamplingLaw(1.0, top_k=3), max_new_tokens=LENGTH)
    for seed in range(3):
        plain = tiny.decode(Method(), around, tiny.prompt(9), seed=seed).output_ids
        assert tiny.decode(PromptLookup(), around, tiny.prompt(9), seed=seed).output_ids == plain


def test_mark_and_restore(model: Model) -> None:
    session = open_target(model)
    assert isinstance(session, RecurrentSession) and session.can == {"logits"}
    session.feed(tiny.prompt(7))
    mark = session.mark()
    first = session.feed([3, 4])
    session.restore(mark)
    assert session.length == 7
    torch.testing.assert_close(session.feed([3, 4]), first)
    assert session.nbytes > 0


def test_what_it_cannot_do_is_refused(model: Model) -> None:
    around = tiny.runtime(model, tiny.model("llama"))
    with pytest.raises(ConfigError, match=r"pair\.target=.*cannot give layers"):
        LayerSkip().open(around)
    with pytest.raises(ConfigError, match=r"method\.shape='dynamic'.*chains only"):
        Speculative(shape="dynamic").open(around)
    with pytest.raises(ConfigError, match=r"pair\.draft=.*no draft"):
        Speculative().open(tiny.runtime(tiny.model("llama"), model))
    session = open_target(model)
    session.feed([1, 2])
    session.pending = 3
    with pytest.raises(ValueError, match="chains only"):
        session.forward(DraftTree([1, 2], [-1, -1]))


def test_a_state_taken_up_one_row_late_is_found(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""
    commit = RecurrentSession.commit

    def late(self: RecurrentSession, verdict: Verdict) -> None:
        more = len(verdict.path) + 1
        commit(self, Verdict(tuple(range(more)), (*verdict.tokens, verdict.extra)))

    monkeypatch.setattr(RecurrentSession, "commit", late)
    with pytest.raises(ConfigError, match="cannot be rolled back exactly"):
        probe_rollback(model, "target", "mamba")

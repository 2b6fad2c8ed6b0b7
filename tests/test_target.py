"""What a target answers beside logits: taps, riders, refusals; each against fresh forwards (`target_cases`).

Twins put a known fault in and show that the same assertions catch it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from target_cases import (
    LAYERED,
    NODES,
    PARENTS,
    PATH,
    PENDING,
    PROMPT,
    RIDER_IDS,
    RIDER_PARENTS,
    N,
    begun,
    causal,
    check_cache,
    commit,
    ids_to,
    model_of,
    riders_on_the_root,
    riders_stay,
    same,
    states_of,
)

import specbench.engine.session as session_module
from specbench.check.bench import fresh_session
from specbench.config.options import ConfigError
from specbench.engine.branching import BranchingSession
from specbench.engine.session import Session
from specbench.engine.tree import DraftTree, Feedback, Riders, Verdict
from specbench.method import Drafter, Method, Needs


# ------------------------------------------------------------------------------------------------------------------- taps
def check_taps(architecture: str) -> None:
    """Of the prompt; of ALL rows of a tree, as each would be alone; of what was committed."""
    model, layers = model_of(architecture), (0, 2, -1)
    session = Session(model, layers)
    session.start(96)
    prompt = session.prefill(PROMPT).taps
    for layer in layers:
        same(prompt[layer], states_of(model, PROMPT)[layer][0])
    session.pending = PENDING
    tree = DraftTree(NODES, PARENTS)
    evidence = session.forward(tree)
    for row in range(1 + N):
        expected = states_of(model, ids_to(row - 1))
        for layer in layers:
            assert len(evidence.taps[layer]) == 1 + N
            same(evidence.taps[layer][row], expected[layer][0, -1])
    feedback = Feedback(tree, evidence, Verdict(PATH, (*(NODES[node] for node in PATH), 11)))
    expected = states_of(model, [*PROMPT, PENDING, *(NODES[node] for node in PATH)])
    for layer in layers:
        same(feedback.tap(layer), expected[layer][0, len(PROMPT) :])
        more = Feedback(tree, evidence, Verdict((), (11,))).tap(layer, only=False)
        assert torch.equal(more, evidence.taps[layer]), "the committed row and those behind it"
        same(feedback.tap(layer, only=False), expected[layer][0, len(PROMPT) :])


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_taps_are_the_hidden_states_of_the_prompt_and_of_all_rows(architecture: str) -> None:
    check_taps(architecture)


def test_taps_of_the_layer_beside_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Session._call

    def shifted(self: Session, *arguments: Any, **options: Any) -> Any:
        output = real(self, *arguments, **options)
        output.hidden_states = (*output.hidden_states[1:], output.hidden_states[0])
        return output

    monkeypatch.setattr(Session, "_call", shifted)
    with pytest.raises(AssertionError, match="not close"):
        check_taps("llama")


def test_the_last_tap_is_what_the_head_reads_and_nobody_pays_for_none() -> None:
    model = model_of("llama")
    evidence = begun(model, (-1,)).forward(DraftTree([1, 2]))
    with torch.inference_mode():
        same(model.module.lm_head(evidence.taps[-1]), evidence.logits)
    assert begun(model).forward(DraftTree([1, 2])).taps == {}


# ----------------------------------------------------------------------------------------------------------------- riders
def check_riders(architecture: str, taps: Sequence[int] = ()) -> None:
    """Riders answer as the text down to them would; nodes as if there were none; nothing of them stays."""
    model = model_of(architecture)
    session = begun(model, taps)
    tree = DraftTree(NODES, PARENTS, riders=Riders(RIDER_PARENTS, RIDER_IDS))
    evidence = session.forward(tree)
    assert evidence.riders is not None and len(evidence.riders) == len(RIDER_IDS) and len(evidence.logits) == 1 + N
    assert all(len(rows) == 1 + N for rows in evidence.taps.values())
    for row in range(1 + N):
        same(evidence.logits[row], tiny.plain_forward(model.module, ids_to(row - 1))[-1])
    for rider in range(len(RIDER_IDS)):
        same(evidence.riders[rider], tiny.plain_forward(model.module, ids_to(N + rider))[-1])
    ids = commit(session, tree, PATH)
    check_cache(session, ids)
    second = session.forward(DraftTree([20, 21], riders=Riders([-1, 0], [3, 4])))
    same(second.logits[2], tiny.plain_forward(model.module, [*ids, 11, 20, 21])[-1])
    assert second.riders is not None
    same(second.riders[1], tiny.plain_forward(model.module, [*ids, 11, 20, 4])[-1])
    session.commit(Verdict((0,), (20, 5)))
    check_cache(session, [*ids, 11, 20])


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_riders_answer_as_the_text_down_to_them_and_leave_nothing(architecture: str) -> None:
    check_riders(architecture)
    check_riders(architecture, taps=(-1,))


def check_positions(architecture: str) -> None:
    """Places of their own: a chain of riders that stands some places further on."""
    model, places = model_of(architecture), [4, 7, 9]
    tree = DraftTree([3, 5], riders=Riders([0, 2, 3], [8, 9, 10], positions=places))
    session = begun(model)
    answered = session.forward(tree).riders
    assert answered is not None
    ids = [*PROMPT, PENDING, 3, 8, 9, 10]
    text = len(PROMPT)
    positions = torch.tensor([[*range(text + 2), *(text + place for place in places)]])
    with torch.inference_mode():
        mask = causal(len(ids))
        expected = model.module(torch.tensor([ids]), position_ids=positions, attention_mask=mask, use_cache=False).logits[0]
    same(answered, expected[-3:])
    check_cache(session, commit(session, tree, (0, 1)))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gpt_neox"])
def test_riders_stand_where_they_say(architecture: str) -> None:
    check_positions(architecture)


def check_embeddings(architecture: str) -> None:
    """What enters the first layer in place of tokens: those of tokens answer as these do; others as a forward of them."""
    model = model_of(architecture)
    embedding = model.module.get_input_embeddings()
    with torch.inference_mode():
        of_ids = embedding(torch.tensor(RIDER_IDS))
    evidence = begun(model).forward(DraftTree(NODES, PARENTS, riders=Riders(RIDER_PARENTS, embeddings=of_ids)))
    plain = begun(model).forward(DraftTree(NODES, PARENTS, riders=Riders(RIDER_PARENTS, RIDER_IDS)))
    assert evidence.riders is not None and plain.riders is not None
    same(evidence.riders, plain.riders)
    same(evidence.logits, plain.logits)
    prompts = torch.randn((2, of_ids.shape[1]), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * of_ids.std()
    session, tree = begun(model), DraftTree([3, 5], riders=Riders([0, 2], embeddings=prompts))
    answered = session.forward(tree).riders
    assert answered is not None
    with torch.inference_mode():
        whole = torch.cat([embedding(torch.tensor([*PROMPT, PENDING, 3])), prompts])
        same(answered, model.module(inputs_embeds=whole[None], use_cache=False).logits[0, -2:])
    check_cache(session, commit(session, tree, (0,)))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_riders_may_be_embeddings(architecture: str) -> None:
    check_embeddings(architecture)


# ------------------------------------------------------------------------------------------------------------------- twins
def places_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    real = session_module._with_riders
    monkeypatch.setattr(session_module, "_with_riders", lambda tree: (real(tree)[0], session_module._depths(real(tree)[0])))


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (riders_on_the_root, lambda: check_riders("llama")),
        (riders_on_the_root, lambda: check_embeddings("gpt2")),
        (riders_stay, lambda: check_riders("llama")),
        (places_forgotten, lambda: check_positions("llama")),
        (places_forgotten, lambda: check_positions("gpt2")),
    ],
)
def test_these_assertions_catch(
    fault: Callable[[pytest.MonkeyPatch], None], check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError, match=r"not close|another length|left something"):
        check()


# ---------------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_target_says_what_it_can(architecture: str) -> None:
    able = Session(model_of(architecture)).can
    assert {"tree", "taps", "riders", "logits"} <= able
    assert ({"layers", "fork"} <= able) == (architecture in LAYERED)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_layers_of_a_model_without_such_are_refused(architecture: str) -> None:
    session = begun(model_of(architecture))
    for ask in (lambda: session.run_layers([1], 0, 2), lambda: session.fork((1,)), lambda: session.part([0])):
        with pytest.raises(ValueError, match=r"is not made of model\.layers"):
            ask()


def test_a_model_of_chains_alone_takes_no_rows_beside_each_other() -> None:
    model = replace(model_of("llama"), tree_refusal="it says so")
    assert not {"tree", "riders"} & Session(model).can
    with pytest.raises(ValueError, match="chains only: it says so"):
        begun(model).forward(DraftTree([1, 2], riders=Riders([-1], [3])))
    with pytest.raises(ValueError, match="chains only: it says so"):
        BranchingSession(model)


class Asking(Drafter):
    def __init__(self, **needs: Any):
        self.wanted = Needs(**needs)

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return self.wanted


@pytest.mark.parametrize("what", ["layers", "fork"])
def test_a_method_is_refused_before_it_begins_by_what_is_missing(what: str) -> None:
    with pytest.raises(ConfigError, match=f"it cannot give {what}, which this method needs") as refused:
        Method(Asking(**{what: True})).open(tiny.runtime(model_of("gpt2")))
    assert refused.value.key == "pair.target"
    Method(Asking(**{what: True})).open(tiny.runtime(model_of("llama")))


def test_riders_are_refused_by_a_target_of_chains() -> None:
    chains = replace(model_of("llama"), tree_refusal="it says so")
    with pytest.raises(ConfigError, match="it cannot give riders"):
        Method(Asking(riders=True)).open(tiny.runtime(chains))


def test_fresh_sessions_are_what_caches_are_compared_with() -> None:
    """The twin of `check_cache`: another text, and the same text one row short."""
    session, _ = fresh_session(model_of("llama"), PROMPT)
    check_cache(session, PROMPT)
    with pytest.raises(AssertionError):
        check_cache(session, [*PROMPT[:-1], 1 + PROMPT[-1]])
    with pytest.raises(AssertionError):
        check_cache(session, PROMPT[:-1])

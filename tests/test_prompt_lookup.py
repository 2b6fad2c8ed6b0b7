"""Prompt lookup drafts what transformers' own generator drafts, round for round, under the same settings."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from specbench.engine.model import Model
from specbench.method import Evidence
from specbench.methods.text.prompt_lookup import LookupDraft, PromptLookup

MAX_NEW_TOKENS = 40


def transformers_rounds(
    module: Any, prompt: list[int], length: int, max_ngram: int, eos_ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[int], list[tuple[int, int]]]:
    """The output of `generate`, and of every round: tokens before it, tokens drafted."""
    seen: list[tuple[int, int]] = []
    candidates = PromptLookupCandidateGenerator.get_candidates

    def noted(self: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        self.max_matching_ngram_size = max_ngram
        found = candidates(self, input_ids, **options)
        seen.append((input_ids.shape[1], found[0].shape[1] - input_ids.shape[1]))
        return found

    monkeypatch.setattr(PromptLookupCandidateGenerator, "get_candidates", noted)
    ids = torch.tensor([prompt])
    options = {"eos_token_id": eos_ids} if eos_ids else {}
    output = module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_NEW_TOKENS - 1, do_sample=False, pad_token_id=0,
        prompt_lookup_num_tokens=length, **options,
    )  # fmt: skip
    return output[0, len(prompt) :].tolist(), seen


@pytest.mark.parametrize(("length", "max_ngram"), [(10, 2), (3, 2), (4, 3)])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("ends", [False, True], ids=["no EOS", "EOS"])
def test_rounds_are_those_of_transformers(
    length: int, max_ngram: int, seed: int, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tiny.module("llama", seed=seed)
    prompt = [3, 4, 5, 6, 7, 8, 3, 4, 5, 9, *tiny.prompt(6, seed), 3, 4]
    model = Model.wrap(module)
    text = tiny.decode(PromptLookup(), tiny.runtime(model, max_new_tokens=MAX_NEW_TOKENS), prompt).output_ids
    eos_ids = [text[25]] if ends else []
    around = tiny.runtime(model, max_new_tokens=MAX_NEW_TOKENS, eos_ids=eos_ids)
    outcome = tiny.decode(PromptLookup(draft_length=length, max_ngram=max_ngram), around, prompt)
    # Theirs takes no prefill apart: it begins behind the prefill's token.
    begun = [*prompt, outcome.output_ids[0]]
    output, theirs = transformers_rounds(module, begun, length, max_ngram, eos_ids, monkeypatch)
    assert outcome.output_ids[1:] == output
    at, ours = len(begun), []
    for r in outcome.rounds:
        ours.append((at, r.num_drafted))
        at += r.num_emitted
    room = len(prompt) + MAX_NEW_TOKENS - 1  # what they draft beyond the limit is never kept
    assert ours == [(before, min(drafted, room - before)) for before, drafted in theirs]
    assert ends or sum(drafted for _, drafted in ours) > 0


def test_a_draft_ends_before_an_eos() -> None:
    draft = LookupDraft(10, 2)
    around = tiny.runtime(tiny.model(), eos_ids=[6])
    draft.begin(tiny.request(around, [3, 4, 5, 6, 7, 3]), 4, Evidence(torch.zeros(1, 1), {}))
    assert draft.propose(10).tokens == [5]
    draft.begin(tiny.request(around, [3, 4, 6, 7, 3]), 4, Evidence(torch.zeros(1, 1), {}))
    assert draft.propose(10).tokens == []


def test_other_settings_make_other_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""
    module, prompt = tiny.module("llama"), [3, 4, 5, 6, 7, 8, 3, 4, 5, 9, *tiny.prompt(6), 3, 4]
    around = tiny.runtime(Model.wrap(module), max_new_tokens=MAX_NEW_TOKENS)
    drafted = [
        [r.num_drafted for r in tiny.decode(PromptLookup(draft_length=length, max_ngram=ngram), around, prompt).rounds]
        for length, ngram in ((10, 2), (3, 2), (10, 1))
    ]
    assert drafted[0] != drafted[1] and drafted[0] != drafted[2]

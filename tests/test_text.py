"""Drafting from text: far ahead of prompt lookup where text repeats, honest about what is kept from prompt to prompt."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import tiny
import told_text
from run_folders import composed

from specbench.measure.records.store import read_rounds, read_samples
from specbench.method import Method
from specbench.methods.text.prompt_lookup import PromptLookup
from specbench.methods.text.sam import Sam
from specbench.methods.text.suffix import Suffix, SuffixDraft
from specbench.parts.drafts.kept import KeptTexts
from specbench.run.run import run


def agent_calls(count: int = 12) -> list[tuple[list[int], list[int]]]:
    """Requests of an agent: one task and what came of the last step; answers are calls of a few forms with other arguments."""
    draw = random.Random(0)
    system = [draw.randrange(100, 400) for _ in range(80)]
    forms = [[draw.randrange(100, 140) for _ in range(30)] for _ in range(3)]
    found = []
    for number in range(count):
        answer = []
        for form in (forms[number % 3], forms[(number + 1) % 3]):
            answer += [*form[:12], draw.randrange(500, 900), *form[12:24], draw.randrange(500, 900), *form[24:]]
        found.append(([*system, *(draw.randrange(400, 900) for _ in range(20))], answer))
    return found


def refactoring() -> tuple[list[int], list[int]]:
    """Code of few common tokens (brackets, colons), and the same code with one name changed."""
    draw = random.Random(1)
    code = [draw.choice((1, 2, 3, 4, draw.randrange(10, 60))) for _ in range(300)]
    return [*code, 0], [7 if token == 25 else token for token in code]


def per_round(method: Method, requests: list[tuple[list[int], list[int]]]) -> float:
    if isinstance(method.drafter, SuffixDraft):
        method.drafter.branches = True
    rounds = [told_text.rounds(method, prompt, output) for prompt, output in requests]
    return sum(map(sum, rounds)) / sum(map(len, rounds))


def test_suffix_is_far_ahead_of_prompt_lookup_where_text_repeats() -> None:
    lookup, warm, cold = (per_round(make(), agent_calls()) for make in (PromptLookup, Suffix, lambda: Suffix(scope="sample")))
    assert warm > 2.5 * lookup and warm > 2.5 * cold, (warm, lookup, cold)
    lookup, cold = (per_round(make(), [refactoring()]) for make in (PromptLookup, lambda: Suffix(scope="sample")))
    assert cold > 2 * lookup, (cold, lookup)


def test_the_longer_the_match_the_more_is_drafted() -> None:
    draft = Suffix(factor=1.0, scope="sample", min_probability=0.0).drafter
    assert isinstance(draft, SuffixDraft)
    draft.branches = True
    sizes = []
    for match in (1, 4, 9, 30):
        text = list(range(100, 160))
        draft.begin(told_text.request([*text, 1, *text[: match - 1]], 40), text[match - 1], None)  # type: ignore[arg-type]
        tree = draft.propose(40)
        assert tree.tokens == text[match : match + len(tree.tokens)]
        sizes.append(len(tree.tokens))
    assert sizes == [1, 4, 9, 24]


def test_kept_outputs_are_cut_as_they_were_and_the_oldest_go() -> None:
    kept = KeptTexts(max_tokens=12)
    for first in (10, 20, 30, 40, 50):
        request = told_text.request([1], 4)
        kept.begin(request, first)
        kept.add((first + 1, first + 2, first + 3, first + 4, first + 5))  # the last two were cut off
    assert [list(text) for text in kept.texts] == [[30, 31, 32, 33], [40, 41, 42, 43]]  # 50's is not finished
    assert kept.index.count[kept.index.following[0][31]] == 1 and not {10, 34} & set(kept.index.following[0])
    kept.clear()
    kept.begin(told_text.request([1], 4), 7)
    assert not kept.index.tokens and not kept.texts


def rounds_of_repeats(folder: Path) -> list[list[tuple[int, int]]]:
    config = composed("method=suffix", "data.source=standin", "measure.power=off")
    config.run_folder, config.measure.repeats, config.data.limit, config.decoding.max_new_tokens = str(folder), 2, 1, 12
    config.measure.warmup, config.engine.threads = 1, 1
    config.baseline = config.method  # one arm
    summary = run(config)
    assert any("keeps what it saw" in warning for warning in summary["warnings"])
    rounds = read_rounds(folder)
    return [list(zip(rounds[s.key]["num_drafted"], rounds[s.key]["num_accepted"], strict=True)) for s in read_samples(folder)]


def test_a_repeat_knows_nothing_of_the_answers_of_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = rounds_of_repeats(tmp_path / "right")
    assert first == second
    monkeypatch.setattr(SuffixDraft, "reset", lambda self: None)  # the twin: the second repeat recites the first
    first, second = rounds_of_repeats(tmp_path / "wrong")
    assert len(second) < len(first)


def test_sam_copies_where_the_text_repeats_and_drafts_elsewhere() -> None:
    target, draft = tiny.bare_pair(24)
    around = tiny.runtime(target, draft, max_new_tokens=40)
    outcome = tiny.decode(Sam(min_match=3), around, tiny.prompt(12, vocab_size=24))
    plain = tiny.decode(Method(), around, tiny.prompt(12, vocab_size=24))
    assert outcome.output_ids == plain.output_ids
    phases = {phase: [r for r in outcome.rounds if r.phase == phase] for phase in ("", "copied")}
    phases[""].pop()  # the last one had room for no draft
    assert all(r.num_draft_forwards for r in phases[""]) and not any(r.num_draft_forwards for r in phases["copied"])
    assert max(r.num_drafted for r in phases["copied"]) > 4 >= max(r.num_drafted for r in phases[""])

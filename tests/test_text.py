"""Drafting from text: far ahead of prompt lookup where text repeats, honest about what is kept from prompt to prompt."""

from __future__ import annotations

import math
import random
import types
from functools import partial
from pathlib import Path

import pytest
import tiny
import told_text
import torch
from run_folders import composed

from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw
from specbench.measure.records.store import read_rounds, read_samples
from specbench.method import Contract, DraftTree, Evidence, Feedback, Method, Verdict
from specbench.methods.text.prompt_lookup import PromptLookup
from specbench.methods.text.rasd import FusedDraft, Rasd
from specbench.methods.text.sam import Sam
from specbench.methods.text.stand import RankTree, Stand
from specbench.methods.text.suffix import Suffix, SuffixDraft
from specbench.methods.text.token_recycling import BY_DEPTH, RecycledDraft, TokenRecycling, template
from specbench.parts.drafts.kept import KeptTexts
from specbench.parts.shapes.likeliest import Likeliest
from specbench.run import costs
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


papers, cold_papers = partial(Suffix, num_nodes=24), partial(Suffix, num_nodes=24, scope="sample")


def per_round(method: Method, requests: list[tuple[list[int], list[int]]]) -> float:
    if isinstance(method.drafter, SuffixDraft):
        method.drafter.branches = True
    rounds = [told_text.rounds(method, prompt, output) for prompt, output in requests]
    return sum(map(sum, rounds)) / sum(map(len, rounds))


def test_suffix_is_far_ahead_of_prompt_lookup_where_text_repeats() -> None:
    lookup, warm, cold = (per_round(make(), agent_calls()) for make in (PromptLookup, papers, cold_papers))
    assert warm > 2.5 * lookup and warm > 2.5 * cold, (warm, lookup, cold)
    lookup, cold = (per_round(make(), [refactoring()]) for make in (PromptLookup, cold_papers))
    assert cold > 2 * lookup, (cold, lookup)


def test_the_longer_the_match_the_more_is_drafted() -> None:
    draft = Suffix(num_nodes=24, factor=1.0, scope="sample", min_probability=0.0).drafter
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
    config = composed("method=suffix", "method.num_nodes=24", "data.source=standin", "measure.power=off")
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


def test_an_energy_block_goes_through_the_prompts_as_passes_of_their_own() -> None:
    calls: list[str] = []
    record = types.SimpleNamespace(decode_seconds=1.0, prefill_seconds=0.0, output_ids=[1], concurrent_seconds={}, error=None)

    def answer(request: str, **_: object) -> tuple[object, list[object]]:
        calls.append(request)
        return record, []

    arm = types.SimpleNamespace(method=types.SimpleNamespace(reset=lambda: calls.append("reset")), run=answer)
    costs.run_block(arm, ["a", "b"], 4.5, lambda: float(len(calls)))  # type: ignore[arg-type, list-item]
    assert calls == ["reset", "a", "b", "reset", "a"]


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


# ------------------------------------------------------------------------------------------------ token recycling
def test_the_template_has_the_papers_levels_and_smaller_ones_are_parts_of_it() -> None:
    nodes = template(80)
    assert tuple(sum(len(node) == depth for node in nodes) for depth in range(1, 7)) == BY_DEPTH and len(set(nodes)) == 80
    for size in (1, 7, 40):
        assert set(template(size)) <= set(nodes) and len(template(size)) == size
        assert all(node[:-1] in {(), *template(size)} for node in template(size))


def test_every_row_is_recycled_and_the_committed_one_wins() -> None:
    draft = RecycledDraft(80, "session")
    draft.open(types.SimpleNamespace(runtime=types.SimpleNamespace(target=tiny.bare(32_000, seed=0))))  # type: ignore[arg-type]
    assert draft.memory_bytes()["successors"] < 2e6
    draft.begin(told_text.request([1], 9), 5, None)  # type: ignore[arg-type]
    assert not draft.propose(6).tokens, "nobody wrote the row yet"
    tree = DraftTree([6, 5, 7, 6], [-1, -1, 0, 1])  # 6 and 5 stand twice: 6 is accepted once, 5 is pending and drafted
    logits = torch.zeros(5, 32_000)
    for row in range(5):
        logits[row, 100 * row : 100 * row + 8] = torch.arange(8.0, 0.0, -1.0)
    draft.observe(Feedback(tree, Evidence(logits, {}), Verdict((0,), (6, 9))))
    first = {token: int(draft.successors[token, 0]) for token in (5, 6, 7)}
    assert first == {5: 0, 6: 100, 7: 300} and draft.successors[9, 0] == -1
    draft.pending = 5
    assert draft.propose(1).tokens == list(range(8))
    draft.reset()
    assert (draft.successors == -1).all()


def emitted(method: Method, around: Runtime, prompts: int = 3, seeds: int = 1) -> float:
    """Per round, over some prompts in one life of the method."""
    tiny.opened(method, around)
    outcomes = [
        method.decode(tiny.request(around, tiny.prompt(9, seed=number, vocab_size=24), sample_id=str(number), seed=seed))
        for seed in range(seeds)
        for number in range(prompts)
    ]
    method.close()
    rounds = [r.num_emitted for outcome in outcomes for r in outcome.rounds]
    return sum(rounds) / len(rounds)


def test_a_warm_matrix_is_ahead_of_a_cold_one() -> None:
    around = tiny.runtime(tiny.bare(24, seed=3), max_new_tokens=20)
    warm, cold = (emitted(TokenRecycling(num_nodes=12, scope=scope), around, prompts=8) for scope in ("session", "sample"))
    assert warm > 1.1 * cold, (warm, cold)


# ------------------------------------------------------------------------------------------------ STAND
def test_a_tree_of_ranks_is_learned_from_the_text() -> None:
    tree = RankTree(num_nodes=12, max_depth=8, width=4)
    before = tree.best()
    for _ in range(300):
        for rank in (1, 0, 1, 0, None):
            tree.add(rank)
    learned = tree.best()
    assert (1, 0, 1, 0) in learned and (1, 0, 1, 0) not in before and len(learned) == len(before) == 12
    assert all(node[:-1] in {(), *learned[:place]} for place, node in enumerate(learned))


@pytest.mark.parametrize(("drawn", "best"), [(None, None), ("recursive_without_replacement", "delta")], ids=["keyed", "law"])
def test_draws_are_ahead_of_the_likeliest_tokens_above_temperature_0(drawn: str | None, best: str | None) -> None:
    """Many trajectories of a problem, the paper's case, with few nodes: which ones are drafted matters."""
    around = tiny.runtime(tiny.bare(24, seed=1), law=SamplingLaw(1.0, top_k=6), max_new_tokens=20)
    by_draws = emitted(Stand(num_nodes=3, rule=drawn), around, prompts=1, seeds=60)
    by_rank = emitted(Stand(num_nodes=3, draw="best", rule=best), around, prompts=1, seeds=60)
    assert by_draws > (1.1 if drawn is None else 1.0) * by_rank, (by_draws, by_rank)


# ------------------------------------------------------------------------------------------------ RASD
def test_what_the_model_finds_unlikely_is_pruned_and_the_rest_is_merged() -> None:
    draft = FusedDraft.__new__(FusedDraft)
    draft.least = math.log(0.1)
    said = 3.0 + torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.05, 0.45, 0.45]]).log()
    draft.said, draft.grown = [(said[:1], 0), (said[1:], 0)], {(-1, 0): 0}
    tree = DraftTree([0, 1, 2], [-1, -1, 0])
    found = Likeliest([0, 3, 2, 1, 3, 2], [-1, -1, -1, 0, 1, 2], [0.4, 0.3, 0.3, 0.4, 0.3, 0.3])
    fused = draft._fused(tree, found)
    # 0 is there already; 3 is unlikely, and so goes what follows it; 2 is likely, and the 2 behind it nobody was asked about.
    assert (fused.tokens, fused.parents) == ([0, 2, 1, 2, 2], [-1, 0, -1, -1, 3])  # the path of first children leads
    assert fused.contract is Contract.FIXED_SET and fused.phase == "fused"


def test_rasd_fuses_where_the_text_repeats() -> None:
    around = tiny.runtime(*tiny.bare_pair(24), max_new_tokens=40)
    outcome = tiny.decode(Rasd(min_match=1), around, [*tiny.prompt(8, vocab_size=24)] * 2)
    assert {"fused", ""} == {r.phase for r in outcome.rounds}

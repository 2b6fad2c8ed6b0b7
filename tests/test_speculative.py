"""Speculative decoding is lossless, costs what it says it costs, and leaves nothing behind.

Under the match rules the ids equal AR's at any temperature (keyed noise), on tiny random pairs and on the built-in one. What a
round cost (draft forwards, tokens fed, drafts thrown away) is counted at the draft's own session and compared with the records.
The ratio rule, which keeps the law and not the ids, is tested in tests/test_speculative_law.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import tiny
import torch

from specbench.config.options import ConfigError
from specbench.config.schema import PairConfig
from specbench.engine.model import Model
from specbench.engine.request import Outcome
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw
from specbench.engine.session import Session
from specbench.methods.chains.autoregressive import Autoregressive
from specbench.methods.chains.speculative import Speculative
from specbench.pair.load import eos_ids, load_model, load_tokenizer
from specbench.pair.spec import specify

GREEDY, WARM, HOT = SamplingLaw(), SamplingLaw(0.7), SamplingLaw(1.0, top_p=0.9)
LAWS = {"greedy": GREEDY, "T=0.7": WARM, "T=1 top-p 0.9": HOT}
TOKENS = 24


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[Model, Model]]:
    """target and draft: a draft that agrees often, one of another architecture that hardly ever does, and the target itself."""
    llama, qwen = tiny.module("llama", layers=2), tiny.module("qwen3", layers=1, seed=5)
    close = tiny.noisy_copy(llama, 0.03)
    target = Model.wrap(llama)
    gpt2 = tiny.module("gpt2", layers=2)
    gemma = tiny.module("gemma3", layers=2)
    return {
        "close": (target, Model.wrap(close)),
        "far": (target, Model.wrap(qwen)),
        "same": (target, target),
        "gpt2": (Model.wrap(gpt2), Model.wrap(tiny.noisy_copy(gpt2, 0.03))),
        "gemma3": (Model.wrap(gemma), Model.wrap(tiny.noisy_copy(gemma, 0.03))),
    }


def ar(around: Runtime, prompt: Sequence[int], **naming: Any) -> list[int]:
    return tiny.decode(Autoregressive(), around, prompt, **naming).output_ids


def check_identities(outcome: Outcome, around: Runtime) -> None:
    """What holds of every record, whatever the method."""
    assert sum(r.num_emitted for r in outcome.rounds) + 1 == len(outcome.output_ids) <= around.max_new_tokens
    assert all(token not in around.eos_ids for token in outcome.output_ids[:-1])
    assert outcome.finish_reason == ("eos" if outcome.output_ids[-1] in around.eos_ids else "length")
    end = 0.0
    for r in outcome.rounds:
        assert 0 <= r.num_accepted <= r.num_drafted == r.draft_depth == r.num_target_rows - 1
        assert r.num_emitted == r.num_accepted + 1 or r is outcome.rounds[-1]
        assert 1 <= r.num_emitted <= r.num_accepted + 1
        assert r.num_discarded == r.num_drafted - r.num_accepted or r.stale
        assert r.t_start >= end and r.draft_seconds >= 0 and r.verify_seconds > 0 and r.wait_seconds == 0
        assert r.draft_seconds + r.verify_seconds <= r.t_end - r.t_start + 1e-9
        end = r.t_end
    assert end <= outcome.decode_seconds + 1e-9 and outcome.prefill_seconds > 0


class FeedLog:
    """Everything that a session was fed since the last `clear`."""

    def __init__(self, session: Session, monkeypatch: pytest.MonkeyPatch):
        self.calls: list[list[int]] = []
        real = session.feed

        def feed(ids: Sequence[int], *arguments: Any, **options: Any) -> torch.Tensor:
            self.calls.append(list(ids))
            return real(ids, *arguments, **options)

        monkeypatch.setattr(session, "feed", feed)

    def of_rounds(self, outcome: Outcome) -> list[list[list[int]]]:
        """Split by round (the first call is the draft's prefill)."""
        rest = self.calls[1:]
        split = []
        for r in outcome.rounds:
            split.append(rest[: r.num_draft_forwards])
            rest = rest[r.num_draft_forwards :]
        assert not rest, "forwards that no round counted"
        return split


# -------------------------------------------------------------------------------------------------------- ids equal AR's
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("pair", "draft_length"), [*(("close", n) for n in range(1, 7)), ("far", 1), ("far", 4)])
def test_output_equals_autoregressive(pairs: Any, pair: str, law: str, draft_length: int) -> None:
    around = tiny.runtime(*pairs[pair], LAWS[law], TOKENS)
    for seed in range(2):
        prompt = tiny.prompt(5 + seed, seed)
        outcome = tiny.decode(Speculative(draft_length=draft_length), around, prompt, sample_id=str(seed))
        assert outcome.output_ids == ar(around, prompt, sample_id=str(seed))
        check_identities(outcome, around)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("pair", ["gpt2", "gemma3"])
def test_output_equals_autoregressive_on_other_architectures(pairs: Any, pair: str, law: str) -> None:
    around = tiny.runtime(*pairs[pair], LAWS[law], TOKENS)
    outcome = tiny.decode(Speculative(draft_length=3), around, tiny.prompt(9))
    assert outcome.output_ids == ar(around, tiny.prompt(9))
    check_identities(outcome, around)


def test_the_pairs_cover_acceptance_and_rejection(pairs: Any) -> None:
    """Without both, the tests here would prove little."""
    counts = {}
    for pair in ("close", "far", "gpt2", "gemma3"):
        around = tiny.runtime(*pairs[pair], GREEDY, 40)
        rounds = tiny.decode(Speculative(draft_length=3), around, tiny.prompt(9)).rounds
        counts[pair] = {r.num_accepted for r in rounds[:-1]}
    assert {0, 3} <= counts["close"] and 0 in counts["far"] and 3 not in counts["far"]
    assert counts["gpt2"] - {0} and counts["gemma3"] - {0}


@pytest.fixture(scope="module")
def builtin() -> dict[str, Any]:
    spec = specify(PairConfig(target="builtin:target", draft="builtin:draft", target_device="cpu", draft_device="cpu"))
    assert spec.draft is not None
    tokenizer = load_tokenizer(spec.target)
    target, draft = load_model(spec.target), load_model(spec.draft)
    text = 'def mean(values):\n    """Return the arithmetic mean of a list of numbers."""\n'
    return {"models": (target, draft), "eos": eos_ids(target.module, tokenizer), "prompt": tokenizer(text).input_ids}


@pytest.mark.parametrize("law", LAWS)
def test_output_equals_autoregressive_on_the_builtin_pair(builtin: Any, law: str) -> None:
    around = tiny.runtime(*builtin["models"], LAWS[law], TOKENS, builtin["eos"])
    expected = ar(around, builtin["prompt"])
    accepted = 0
    for draft_length in (1, 2, 4, 6):
        outcome = tiny.decode(Speculative(draft_length=draft_length), around, builtin["prompt"])
        assert outcome.output_ids == expected
        check_identities(outcome, around)
        accepted += sum(r.num_accepted for r in outcome.rounds)
    assert accepted > 0  # a trained pair agrees now and then


def test_a_wrong_pending_token_would_show(pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: a commit that feeds the first accepted token again instead of the target's own changes the output."""
    real = Session.commit

    def commit(self: Session, verdict: Any) -> None:
        real(self, verdict)
        self.pending = verdict.tokens[0]

    around = tiny.runtime(*pairs["close"], GREEDY, TOKENS)
    expected = ar(around, tiny.prompt(5))
    monkeypatch.setattr(Session, "commit", commit)
    assert tiny.decode(Speculative(draft_length=3), around, tiny.prompt(5)).output_ids != expected


# ------------------------------------------------------------------------------------------------------- stopping, exactly
@pytest.mark.parametrize("limit", range(1, 15))
def test_the_length_limit_cuts_wherever_it_falls(pairs: Any, limit: int) -> None:
    for pair in ("same", "close"):
        long, short = (tiny.runtime(*pairs[pair], GREEDY, n) for n in (TOKENS, limit))
        outcome = tiny.decode(Speculative(draft_length=3), short, tiny.prompt(6))
        assert outcome.output_ids == ar(long, tiny.prompt(6))[:limit] and outcome.finish_reason == "length"
        check_identities(outcome, short)
        room = limit - 1
        for r in outcome.rounds:
            assert r.num_drafted <= room - 1  # the round's last token is the target's own: no draft that cannot be kept
            room -= r.num_emitted


def test_one_new_token_is_prefill_alone(pairs: Any) -> None:
    around = tiny.runtime(*pairs["close"], GREEDY, 1)
    outcome = tiny.decode(Speculative(draft_length=3), around, tiny.prompt(6))
    assert len(outcome.output_ids) == 1 and outcome.rounds == [] and outcome.finish_reason == "length"


@pytest.mark.parametrize("law", ["greedy", "T=0.7"])
@pytest.mark.parametrize("position", range(10))
def test_the_end_token_cuts_wherever_it_falls(pairs: Any, position: int, law: str) -> None:
    """With a draft that is always right every position of a block is met: first, middle, last, bonus, and the prefill's."""
    free = tiny.runtime(*pairs["same"], LAWS[law], TOKENS)
    ids = ar(free, tiny.prompt(6))
    around = tiny.runtime(*pairs["same"], LAWS[law], TOKENS, {ids[position]})
    expected = ids[: ids.index(ids[position]) + 1]
    assert ar(around, tiny.prompt(6)) == expected
    outcome = tiny.decode(Speculative(draft_length=3), around, tiny.prompt(6))
    assert outcome.output_ids == expected and outcome.finish_reason == "eos"
    check_identities(outcome, around)


def test_an_accepted_block_was_cut_by_the_end_token(pairs: Any) -> None:
    """The case that the test above must contain: drafts that the rule accepts beyond the end are discarded."""
    free = tiny.runtime(*pairs["same"], WARM, TOKENS)
    ids = ar(free, tiny.prompt(6))
    position = next(p for p in (2, 3) if ids.index(ids[p]) == p)  # inside the first block of 1 + (3 + 1)
    around = tiny.runtime(*pairs["same"], WARM, TOKENS, {ids[position]})
    (only,) = tiny.decode(Speculative(draft_length=3), around, tiny.prompt(6)).rounds
    assert only.num_accepted == only.num_emitted == position < 4, "accepted up to the end, and not beyond"
    assert only.num_drafted == 3 and only.num_discarded == only.rollback_depth == 3 - position


# ------------------------------------------------------------------------------------------------------ what a round costs
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("draft_length", [1, 2, 5])
def test_a_draft_that_is_the_target_is_always_right(
    pairs: Any, law: str, draft_length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = tiny.runtime(*pairs["same"], LAWS[law], 32)
    method = tiny.opened(Speculative(draft_length=draft_length), around)
    log = FeedLog(method.sessions()["draft"], monkeypatch)
    outcome = method.decode(tiny.request(around, tiny.prompt(6)))
    assert {(r.num_accepted, r.num_emitted) for r in outcome.rounds[:-1]} == {(draft_length, draft_length + 1)}
    assert sum(r.num_discarded + r.rollback_depth for r in outcome.rounds) == 0
    # After a fully accepted round the draft is fed its own last token and the bonus in one forward.
    committed = [*tiny.prompt(6), *outcome.output_ids]
    position = len(tiny.prompt(6)) + 1
    for index, (calls, r) in enumerate(zip(log.of_rounds(outcome), outcome.rounds, strict=True)):
        assert len(calls) == r.num_draft_forwards == r.num_drafted
        if calls:
            assert calls[0] == committed[position - (2 if index else 1) : position]
            assert all(len(call) == 1 for call in calls[1:])
        position += r.num_emitted


@pytest.mark.parametrize("pair", ["close", "far"])
def test_every_committed_token_is_fed_to_the_draft_once(pairs: Any, pair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the draft's cache holds is always a prefix of what was committed, followed by this round's drafts."""
    around = tiny.runtime(*pairs[pair], GREEDY, 32)
    method = tiny.opened(Speculative(draft_length=3), around)
    log = FeedLog(method.sessions()["draft"], monkeypatch)
    outcome = method.decode(tiny.request(around, tiny.prompt(6)))
    committed, held = [*tiny.prompt(6), outcome.output_ids[0]], list(tiny.prompt(6))
    for calls, r in zip(log.of_rounds(outcome), outcome.rounds, strict=True):
        fed = [token for call in calls for token in call]
        assert r.num_draft_forwards == r.num_drafted and len(calls) == r.num_drafted
        if calls:
            assert held + fed[: len(committed) - len(held)] == committed
            held += fed
        committed += outcome.output_ids[len(committed) - 6 :][: r.num_emitted]
        agree = next(
            (i for i, (a, b) in enumerate(zip(held, committed, strict=False)) if a != b), min(len(held), len(committed))
        )
        held = held[: min(agree, len(committed) - 1)]


def fully_accepted(r: Any) -> bool:
    return r.num_drafted > 0 and r.num_accepted == r.num_drafted


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("pair", ["same", "close", "far"])
def test_the_published_baseline_costs_one_forward_per_full_round_and_wastes_wrong_guesses(
    pairs: Any, pair: str, law: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    length, limit = 2, 40
    around = tiny.runtime(*pairs[pair], LAWS[law], limit)
    method = tiny.opened(Speculative(draft_length=length, compat="amusd"), around)
    log = FeedLog(method.sessions()["draft"], monkeypatch)
    request = tiny.request(around, tiny.prompt(6))
    outcome = method.decode(request)
    assert outcome.output_ids == ar(around, tiny.prompt(6))
    check_identities(outcome, around)
    log.of_rounds(outcome)  # every forward is counted by exactly one round

    committed, after_full, stale, extra = [*tiny.prompt(6), outcome.output_ids[0]], False, 0, 0
    for r in outcome.rounds:
        room = limit - (len(committed) - 6) - 1
        if room < 1:
            assert r.num_drafted == r.num_draft_forwards == 0
        elif not after_full:
            assert (r.num_draft_forwards, r.num_drafted, r.stale) == (min(length, room), min(length, room), False)
        else:
            # What does the draft expect where the target put its bonus? Its own fresh forward says.
            logits = tiny.plain_forward(pairs[pair][1].module, committed[:-1])[-1:]
            guess = around.law.choose(logits, [len(committed) - 1 - 6], request.noise_key)[0]
            assert r.stale == (guess != committed[-1])
            assert r.num_draft_forwards == min(length, room) + 1
            assert r.num_drafted == (0 if r.stale else min(length, room))
            assert not r.stale or (r.num_discarded == r.num_draft_forwards and r.num_emitted == 1)
            stale, extra = stale + r.stale, extra + 1
        committed += outcome.output_ids[len(committed) - 6 :][: r.num_emitted]
        after_full = fully_accepted(r)
    assert extra > 0 or pair == "far"
    assert stale == 0 if pair == "same" else stale > 0 or extra < 3

    plain = tiny.decode(Speculative(draft_length=length), around, tiny.prompt(6))
    assert len(plain.rounds) <= len(outcome.rounds)  # the handicap never saves a target forward


def test_wrong_guesses_do_occur(pairs: Any) -> None:
    """The stale branch above is taken: without such rounds the test would not have looked at it."""
    found = 0
    for seed in range(6):
        around = tiny.runtime(*pairs["close"], GREEDY, 40)
        method = Speculative(draft_length=1, compat="amusd")
        found += sum(r.stale for r in tiny.decode(method, around, tiny.prompt(6, seed)).rounds)
    assert found > 0


# --------------------------------------------------------------------------------------------------- nothing stays behind
@pytest.mark.parametrize("rule", ["match", "ratio"])
@pytest.mark.parametrize("compat", [None, "amusd"])
def test_a_request_is_answered_the_same_whatever_came_before(pairs: Any, compat: str | None, rule: str) -> None:
    around = tiny.runtime(*pairs["close"], WARM, TOKENS)
    method = tiny.opened(Speculative(draft_length=3, compat=compat, rule="ratio" if rule == "ratio" else None), around)

    def answer(prompt: Sequence[int], name: str) -> Any:
        outcome = method.decode(tiny.request(around, prompt, sample_id=name))
        counts = [(r.num_drafted, r.num_accepted, r.num_emitted, r.num_draft_forwards, r.stale) for r in outcome.rounds]
        return outcome.output_ids, counts

    first = answer(tiny.prompt(6), "a")
    answer(tiny.prompt(11, seed=8), "b")
    assert answer(tiny.prompt(6), "a") == first
    method.sessions()["draft"].feed([1, 2, 3])  # a sample that broke off in the middle of a draft
    assert answer(tiny.prompt(6), "a") == first
    assert answer(tiny.prompt(6), "c") != first  # another sample has other noise


def test_autoregressive_rounds_draft_nothing(pairs: Any) -> None:
    around = tiny.runtime(*pairs["close"], GREEDY, TOKENS)
    outcome = tiny.decode(Autoregressive(), around, tiny.prompt(6))
    assert len(outcome.rounds) == TOKENS - 1
    assert {(r.num_drafted, r.num_emitted, r.num_target_rows, r.num_draft_forwards) for r in outcome.rounds} == {(0, 1, 1, 0)}
    check_identities(outcome, around)


def test_both_caches_are_counted(pairs: Any) -> None:
    around = tiny.runtime(*pairs["close"], GREEDY, TOKENS)
    method = tiny.opened(Speculative(draft_length=3), around)
    method.decode(tiny.request(around, tiny.prompt(6)))
    sizes = method.memory_bytes()
    assert sizes.keys() == {"target_kv", "draft_kv"} and all(size > 0 for size in sizes.values())


# ---------------------------------------------------------------------------------------------------------------- refusals
def test_wrong_options_are_named(pairs: Any) -> None:
    for wrong in (0, -1, 2.5, None):
        with pytest.raises(ConfigError, match=r"method\.draft_length="):
            Speculative(draft_length=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"method\.compat='pearl': possible: null, amusd"):
        Speculative(compat="pearl")
    for rule in ("k_seq", "typical", "recursive_with_replacement", "lockstep_ratio"):
        with pytest.raises(ConfigError, match=rf"method\.rule='{rule}': possible for this draft"):
            Speculative(rule=rule)
    with pytest.raises(ConfigError, match=r"method\.rule='ratio': possible for this draft"):
        Speculative(rule="ratio", shape="dynamic")
    for options in ({"shape": "dynamic"}, {"stop": "confidence"}):
        with pytest.raises(ConfigError, match=r"method\.compat='amusd': is the published baseline"):
            Speculative(compat="amusd", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"method\.rule='greedy_match': is not exact"):
        Speculative(rule="greedy_match").rule_for(WARM)
    with pytest.raises(ConfigError, match=r"pair\.draft=null"):
        Speculative().open(tiny.runtime(pairs["close"][0]))


def test_claims() -> None:
    assert Speculative().claim(GREEDY) == "greedy-exact" and Speculative().same_ids(GREEDY)
    assert Speculative().claim(WARM) == "sampling-exact" and Speculative().same_ids(WARM)
    assert Speculative(rule="ratio").claim(WARM) == "sampling-exact" and not Speculative(rule="ratio").same_ids(WARM)
    assert Speculative(rule="ratio").claim(GREEDY) == "greedy-exact" and Speculative(rule="ratio").same_ids(GREEDY)


def test_the_ratio_rule_at_temperature_zero_is_greedy(pairs: Any) -> None:
    around = tiny.runtime(*pairs["close"], GREEDY, TOKENS)
    outcome = tiny.decode(Speculative(draft_length=3, rule="ratio"), around, tiny.prompt(6))
    assert outcome.output_ids == ar(around, tiny.prompt(6))
    check_identities(outcome, around)

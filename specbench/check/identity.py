"""Checks by ids: against autoregressive decoding, against itself, against limits."""

from __future__ import annotations

from specbench.check.bench import GREEDY, MAX_NEW_TOKENS, SAMPLED, Bench
from specbench.check.result import SKIP, Result
from specbench.engine.request import Outcome, Request
from specbench.engine.sampling import SamplingLaw
from specbench.measure.lossless import DIFFERENT, TIE


def greedy_identity(bench: Bench) -> Result:
    """At temperature 0 the output is the target's own, token for token."""
    return _identity(bench, GREEDY, seeds=1)


def sampled_identity(bench: Bench, seeds: int = 2) -> Result:
    """At a temperature the output equals autoregressive sampling under the same keyed noise, where that is claimed."""
    return _identity(bench, SAMPLED, seeds)


def _identity(bench: Bench, law: SamplingLaw, seeds: int) -> Result:
    method = bench.method(law)
    if not method.same_ids(law):
        claim = "nothing (lossy)" if method.claim(law) == "lossy" else "the law, not the tokens"
        return Result(SKIP, f"rule {method.rule_for(law).name} claims {claim}")
    requests = [bench.request(prompt, seed) for prompt in range(len(bench.prompts)) for seed in range(seeds)]
    report = bench.compare(law, requests)
    seen = f"{report.identical} of {report.compared} outputs identical"
    first = report.first_divergence or {}
    where = (
        f"; first difference at token {first.get('position')}: {first.get('method_token')} for {first.get('baseline_token')}, "
        f"{first.get('reason')}"
    )
    if report.verdict == DIFFERENT:
        return Result.of(seen + where, "")
    return Result.of(None, seen + (f"; the rest are numerical ties{where}" if report.verdict == TIE else ""))


def eos_anywhere(bench: Bench) -> Result:
    """Whatever token of an output is declared EOS, the output ends there, kept, wherever in a block it was accepted, and no
    draft behind it counts as accepted."""
    cases = inside = 0
    for prompt in range(len(bench.prompts)):
        whole = bench.decode(GREEDY, bench.request(prompt)).output_ids
        for place, token in enumerate(whole):
            if whole.index(token) != place:
                continue
            outcome = bench.decode(GREEDY, bench.request(prompt, eos_ids={token}))
            if (outcome.output_ids, outcome.finish_reason) != (whole[: place + 1], "eos"):
                problem = f"EOS at token {place}: got {len(outcome.output_ids)} tokens, finish_reason {outcome.finish_reason}"
                return Result.of(problem, "")
            for r in outcome.rounds:
                if not r.num_accepted <= r.num_emitted <= r.num_accepted + 1:
                    return Result.of(
                        f"EOS at token {place}: {r.num_accepted} drafts accepted, {r.num_emitted} tokens emitted", ""
                    )
            cases += 1
            inside += bool(outcome.rounds) and outcome.rounds[-1].num_emitted == outcome.rounds[-1].num_accepted
    return Result.of(None, f"{cases} cases; in {inside} of them the EOS was an accepted draft")


def length_cut(bench: Bench) -> Result:
    """max_new_tokens from 1 to 5 cuts the same output, and a single token needs no round."""
    for prompt in range(len(bench.prompts)):
        whole = bench.decode(GREEDY, bench.request(prompt, eos_ids=())).output_ids
        if len(whole) != MAX_NEW_TOKENS:
            return Result.of(f"{len(whole)} tokens where {MAX_NEW_TOKENS} were asked for", "")
        for length in range(1, 6):
            outcome = bench.decode(GREEDY, bench.request(prompt, max_new_tokens=length, eos_ids=()))
            if (outcome.output_ids, outcome.finish_reason) != (whole[:length], "length"):
                problem = f"max_new_tokens={length}: got {len(outcome.output_ids)} tokens, {outcome.finish_reason}"
                return Result.of(problem, "")
            if length == 1 and outcome.rounds:
                return Result.of("max_new_tokens=1: a round, though the prefill's token is all", "")
    return Result.of(None, "lengths 1 to 5")


def same_seed(bench: Bench, num_seeds: int = 6) -> Result:
    """The same seed gives the same ids; other seeds give others."""
    outputs = []
    for seed in range(num_seeds):
        first, again = (_afresh(bench, bench.request(0, seed)) for _ in range(2))
        if first != again:
            return Result.of(f"seed {seed} gave two outputs", "")
        outputs.append(first)
    different = len({tuple(output) for output in outputs})
    return Result.of("all seeds give the same output" if different == 1 else None, f"{different} outputs of {num_seeds} seeds")


def _afresh(bench: Bench, request: Request) -> list[int]:
    bench.method(SAMPLED).reset()  # under rules that draw, what a method kept between samples would move the ids
    return bench.decode(SAMPLED, request).output_ids


def fresh_state(bench: Bench) -> Result:
    """Sample A, then B, then A again: A knows nothing of what came before (ids, and without workers every count of a round)."""
    for law in (GREEDY, SAMPLED):
        bench.method(law).reset()
        first = bench.decode(law, bench.request(0, seed=1))
        for prompt in range(1, len(bench.prompts)):
            bench.decode(law, bench.request(prompt, seed=2))
        if bench.needs.scope == "session":
            bench.method(law).reset()  # what was kept between samples is gone: as in the beginning
        again = bench.decode(law, bench.request(0, seed=1))
        if first.output_ids != again.output_ids:
            return Result.of(f"temperature {law.temperature:g}: other ids after other samples", "")
        # How far an asynchronous draft got is a matter of time.
        if bench.needs.draft != "worker" and _counts(first) != _counts(again):
            return Result.of(f"temperature {law.temperature:g}: the same ids in other rounds after other samples", "")
    return Result.of(None, "A, others, A again")


def _counts(outcome: Outcome) -> list[tuple[int, int, int]]:
    return [(r.num_drafted, r.num_accepted, r.num_discarded) for r in outcome.rounds]

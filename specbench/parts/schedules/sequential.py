"""The sequential schedule: propose, forward, verify, commit, observe, record.

Every method without a schedule of its own runs through this one loop, autoregression included (it proposes nothing), so that
both arms share cache, stop rule and clock. Timing: the clock starts with the prompt's ids at hand; prefill ends with the first
token read and the method's own prefill done; no synchronisation inside the loop other than reading the verdict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from specbench.engine.request import Outcome, Request, cut
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw
from specbench.engine.session import Session
from specbench.engine.tree import DraftTree, Verdict
from specbench.measure.records.events import Round
from specbench.measure.sensors.clock import clock_for, now
from specbench.parts.rules.rule import Rule, TorchRng, check_contract

if TYPE_CHECKING:
    from specbench.method import Method


def judge(
    rule: Rule, tree: DraftTree, logits: torch.Tensor, law: SamplingLaw, position: int, noise_key: int, rng: Any
) -> Verdict:
    """Apply an acceptance rule to a tree's target logits [1 + N, vocab]; `position` is the output index of the row 0 choice."""
    check_contract(rule, tree.contract)
    if rule.needs == "choice":
        positions = [position, *(position + depth for depth in tree.depths())]
        return rule.function(tree, law.choose(logits, positions, noise_key))
    return rule.function(tree, law.probabilities(logits), rng)


def sequential(method: Method, target: Session, runtime: Runtime, request: Request) -> Outcome:
    """Continue one prompt with one process doing everything in turn."""
    law, key, eos_ids = runtime.law, request.noise_key, request.eos_ids
    rule = method.rule_for(law)
    rng = TorchRng.seeded(key) if rule.needs == "probabilities" else None
    clock = clock_for(runtime.device)
    if runtime.draft is not None:
        runtime.draft.expect(request)
    target.start(len(request.prompt_ids) + request.max_new_tokens + method.max_nodes + 1)
    clock.synchronize()

    stamps = [clock.stamp()]
    first = law.choose(target.prefill(request.prompt_ids), [0], key)[0]
    target.pending = first
    output, finish = cut([first], request.max_new_tokens, eos_ids)
    if finish is None:
        method.begin(request, first)
    stamps.append(clock.stamp())

    started_at = now()

    done: list[tuple[DraftTree, Verdict, int]] = []
    while finish is None:
        # The last token is always the target's own: never draft more than can be kept.
        tree = method.propose(request.max_new_tokens - len(output) - 1)
        stamps.append(clock.stamp())
        logits = target.forward(tree)
        verdict = judge(rule, tree, logits, law, len(output), key, rng)
        stamps.append(clock.stamp())
        target.commit(verdict)
        kept, finish = cut(list(verdict.tokens), request.max_new_tokens - len(output), eos_ids)
        output += kept
        done.append((tree, verdict, len(kept)))
        if finish is None:
            method.observe(verdict)
        stamps.append(clock.stamp())

    seconds = clock.seconds(stamps)
    start = seconds[1]
    rounds = []
    for index, (tree, verdict, kept_count) in enumerate(done):
        begin, drafted, verified, end = (seconds[1 + 3 * index + k] - start for k in range(4))
        discarded = len(tree.tokens) - verdict.num_accepted + tree.num_wasted
        rounds.append(
            Round(
                t_start=begin,
                t_end=end,
                num_drafted=len(tree.tokens),
                num_accepted=verdict.num_accepted,
                num_emitted=kept_count,
                num_discarded=discarded,
                num_target_rows=1 + len(tree.tokens),
                num_draft_forwards=tree.num_forwards,
                draft_depth=tree.depth,
                rollback_depth=tree.depth - verdict.num_accepted + tree.num_wasted,
                stale=tree.stale,
                mode=tree.mode,
                draft_seconds=drafted - begin,
                verify_seconds=verified - drafted,
            )
        )
    return Outcome(output, finish, seconds[1] - seconds[0], seconds[-1] - start, rounds, started_at=started_at)

"""The sequential schedule: propose, forward, judge, commit, observe.

Every method without a schedule of its own runs through this one loop, autoregression included (it proposes nothing), so that
both arms share cache, stop rule and clock. Timing: the clock starts with the prompt's ids at hand; prefill ends with the first
token read and the drafter's own prefill done; no synchronisation inside the loop other than reading the verdict.
"""

from __future__ import annotations

from specbench.engine.request import Outcome, Request
from specbench.engine.tree import Feedback
from specbench.measure.sensors.clock import clock_for
from specbench.parts.contracts import Parts, Schedule
from specbench.parts.schedules.books import Books


class Sequential(Schedule):
    """One process does everything in turn."""

    def run(self, parts: Parts, request: Request) -> Outcome:
        setting, drafter, stop, adapter = parts.setting, parts.drafter, parts.stop, parts.adapter
        target, rule, law, key = setting.target, setting.rule, setting.runtime.law, request.noise_key
        books, coins = Books(request, clock_for(setting.runtime.device)), rule.coins(key)
        vocab_size = setting.runtime.target.vocab_size
        stop.begin(request)  # first: a budget of bytes sizes what the drafter lays out
        drafter.announce(request)
        target.start(len(request.prompt_ids) + request.max_new_tokens + drafter.max_nodes + 1)

        books.start()
        evidence = target.prefill(request.prompt_ids)
        first = law.choose(evidence.logits, [0], key)[0]
        target.pending = first
        books.first(first)
        if not books.finished:
            drafter.begin(request, first, evidence)
            if adapter is not None:
                adapter.begin(request, first)
                books.draft_version = adapter.version
        books.decode()

        while not books.finished:
            tree = drafter.propose(min(books.room, stop.budget(books.room)))
            tree.refuse_impossible(books.room, drafter.max_nodes, vocab_size)
            books.stamp("draft")
            evidence = rule.ask(target, tree, law, books.position, key)
            verdict = rule.judge(tree, evidence, law, books.position, key, coins)
            verdict.refuse_impossible(tree, vocab_size)
            books.stamp("verify")
            target.commit(verdict)
            books.round(tree, verdict, target_share=evidence.share)
            feedback = Feedback(tree, evidence, verdict)
            drafter.observe(feedback)
            if tree.by_stop:
                stop.learn(tree.depth, verdict.num_accepted)
            if adapter is not None:
                books.stamp("other")
                adapter.learn(feedback)
                books.draft_version = adapter.version
            books.end_round("learn" if adapter is not None else "other")
            setting.runtime.alive()

        return books.outcome(counted=drafter.counted() | ({} if adapter is None else adapter.counted()))

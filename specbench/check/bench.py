"""A method on a pair, beside autoregressive decoding on the same weights, ready to be asked one prompt after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from specbench.config.specs import PairSpec
from specbench.engine.request import Outcome, Request
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw, keyed_gumbel, noise_key
from specbench.engine.session import Session
from specbench.measure.lossless import LosslessReport, compare
from specbench.measure.metrics import RoundTable, check_identities
from specbench.measure.records.events import SampleRecord
from specbench.method import Method, create_method
from specbench.pair.load import draft_loader, load_model
from specbench.pair.stages import stage_loader
from specbench.processes.placement import Placement

GREEDY = SamplingLaw()
SAMPLED = SamplingLaw(temperature=1.0, top_k=3)  # three tokens at a place: few enough to know the whole law
MAX_NEW_TOKENS = 24


class Bench:
    """One method, opened once for each sampling law and then reused. Close it in the end.

    node: as in the configuration, `_target_` and options. prompts: token ids. Every outcome's records are checked against the
    identities that all records must fulfil (IdentityError).
    """

    def __init__(
        self,
        node: Mapping[str, Any],
        pair: PairSpec,
        prompts: Sequence[Sequence[int]],
        allow_targets: Sequence[str] = (),
        eos_ids: Iterable[int] = (),
        timeout_seconds: float = 60.0,
    ):
        self.node, self.allow_targets = dict(node), tuple(allow_targets)
        self.prompts = tuple(tuple(ids) for ids in prompts)
        self.eos_ids, self.timeout_seconds = frozenset(eos_ids), timeout_seconds
        self.needs = self.create().needs
        self.pair = pair if self.needs.draft != "none" else replace(pair, draft=None)
        self.target = load_model(pair.target, pair.vocab_size)
        self._draft: Any = None
        self._opened: dict[SamplingLaw, Method] = {}
        self._references: dict[SamplingLaw, Method] = {}

    def create(self, **changes: Any) -> Method:
        """A fresh, unopened method; `changes` overrides options."""
        return create_method({**self.node, **changes}, self.allow_targets)

    def runtime(self, law: SamplingLaw) -> Runtime:
        """What this process has for the method: a draft model only if it wants one here."""
        if self.needs.draft == "local" and self._draft is None and self.pair.draft is not None:
            self._draft = load_model(self.pair.draft, self.pair.vocab_size)
        settings = (law, MAX_NEW_TOKENS, self.eos_ids, self.timeout_seconds)
        return Runtime(
            self.pair,
            self.target,
            self._draft,
            *settings,
            load_draft=draft_loader(self.pair),
            load_stage=stage_loader(self.pair),
        )

    def method(self, law: SamplingLaw) -> Method:
        """The method, open. Raises ConfigError when the pair lacks what it needs."""
        if law not in self._opened:
            method = self.create()
            try:
                method.open(self.runtime(law))
            except BaseException:
                method.close()
                raise
            self._opened[law] = method
        return self._opened[law]

    def request(
        self,
        prompt: int,
        seed: int = 0,
        max_new_tokens: int = MAX_NEW_TOKENS,
        eos_ids: Collection[int] | None = None,
    ) -> Request:
        """Prompt number `prompt`; the seed keys the noise."""
        name, ends = f"check-{prompt}", self.eos_ids if eos_ids is None else frozenset(eos_ids)
        return Request(name, 0, self.prompts[prompt], max_new_tokens, ends, noise_key(seed, name, 0))

    def decode(self, law: SamplingLaw, request: Request) -> Outcome:
        """The method's answer, on the cores that it settled for. Raises IdentityError where records contradict themselves."""
        method = self.method(law)
        placement: Placement | None = method.placement
        with placement.applied() if placement is not None else contextlib.nullcontext():
            outcome = method.decode(request)
        record = self._record("method", request, outcome, 0)
        check_identities([record], RoundTable.of({record.key: outcome.rounds}))
        return outcome

    def expected(self, law: SamplingLaw, request: Request) -> Outcome:
        """What the target says on its own, under the same noise: the base method drafts nothing."""
        if law not in self._references:
            self._references[law] = Method()
            self._references[law].open(replace(self.runtime(law), draft=None))
        return self._references[law].decode(request)

    def compare(self, law: SamplingLaw, requests: Sequence[Request]) -> LosslessReport:
        """Decode with both and compare ids; a difference at an all but tied pair of scores counts as a numerical tie."""
        records = []
        for repeat, request in enumerate(requests):
            records.append(self._record("method", request, self.decode(law, request), repeat))
            records.append(self._record("baseline", request, self.expected(law, request), repeat))

        def gap_of(record: SampleRecord, position: int, other: int) -> float:
            ids = record.output_ids
            scores = self.scores(law, record.prompt_ids, ids[:position], requests[record.repeat].noise_key)
            return float(scores.max() - min(scores[ids[position]], scores[other]))

        claim = self.method(law).claim(law)
        return compare(records, claim=claim, dtype=str(self.target.dtype), gap_of=gap_of)

    def scores(self, law: SamplingLaw, prompt_ids: Sequence[int], prefix_ids: Sequence[int], key: int) -> Any:
        """What the target chooses by, after prompt and prefix: [vocab], from one fresh forward."""
        logits = fresh_session(self.target, [*prompt_ids, *prefix_ids])[1]
        if law.greedy:
            return logits[0].float()
        return law.warp(logits)[0] + keyed_gumbel(key, [len(prefix_ids)], logits.shape[1], logits.device)[0]

    def _record(self, arm: str, request: Request, outcome: Outcome, repeat: int) -> SampleRecord:
        return SampleRecord(
            sample_id=request.sample_id,
            turn=0,
            repeat=repeat,
            arm=arm,
            order=0,
            category=None,
            prompt_ids=request.prompt_ids,
            output_ids=tuple(outcome.output_ids),
            finish_reason=outcome.finish_reason,
            prefill_seconds=outcome.prefill_seconds,
            decode_seconds=outcome.decode_seconds,
            num_emitted=max(0, len(outcome.output_ids) - 1),
            num_rounds=len(outcome.rounds),
        )

    def drop(self, law: SamplingLaw) -> Method | None:
        """Hand over the method opened for this law, which the bench then forgets."""
        return self._opened.pop(law, None)

    def close(self) -> None:
        """Close every method that was opened."""
        for method in self._opened.values():
            method.close()
        self._opened.clear()


def fresh_session(model: Any, ids: Sequence[int]) -> tuple[Session, Any]:
    """A session that was fed these ids in one forward and nothing else, and the logits [1, vocab] behind them."""
    session = Session(model)
    session.start(len(ids))
    return session, session.feed(ids, last_only=True)

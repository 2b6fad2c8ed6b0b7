"""The passes over the prompts: which prompt comes when, in which arm, with which history.

Arms are interleaved per prompt in a seeded random order, so that drift of the machine's clocks falls on both alike. In
conversations both arms get the baseline's own answers of repeat 0 as history (`data.history=baseline`), so that prompts stay
paired; `own` gives each arm its own answers, `dataset` the set's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from specbench import data
from specbench.config.say import counted, say
from specbench.config.schema import RunConfig
from specbench.data import Sample
from specbench.engine import threads as forward_threads
from specbench.engine.request import Request
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import noise_key
from specbench.measure.records.events import Round, SampleRecord
from specbench.measure.records.store import RunStore
from specbench.run.arms import Arm, warm_up
from specbench.run.console import Progress
from specbench.run.hooks import asked


class Prompts:
    """Turns samples into requests, remembering the answers that later turns and repeats build on.

    The first answer to a turn counts: repeat 0's, or a later one's where that failed.
    """

    def __init__(self, config: RunConfig, tokenizer: Any, runtime: Runtime, context: int | None):
        self.config, self.tokenizer, self.runtime, self.context = config, tokenizer, runtime, context
        self._answers: dict[tuple[str, str], list[tuple[int, ...]]] = {}  # (sample, arm) -> ids of replies to turns 0, 1, ...
        self._ids: dict[tuple[str, int, str], tuple[int, ...]] = {}

    def turns(self, sample: Sample) -> list[int]:
        return data.turns_to_generate(sample, self.config.data.history)

    def prompt_ids(self, sample: Sample, turn: int, arm: str) -> tuple[int, ...]:
        """The same in every repeat."""
        history = self.config.data.history
        whose = arm if history == "own" else "baseline"
        key = (sample.sample_id, turn, whose)
        if key not in self._ids:
            given = self._answers.get((sample.sample_id, whose), [])
            answers = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in given]
            replies = data.history_replies(sample, turn, history, answers)
            self._ids[key] = tuple(data.render(sample, turn, replies, self.tokenizer, self.config.data.template))
        return self._ids[key]

    def refusal(self, sample: Sample, turn: int, arms: Iterable[str]) -> str | None:
        """Why this turn has no prompt, None if it has one in all arms: a template may refuse the answers before it."""
        try:
            for arm in arms:
                self.prompt_ids(sample, turn, arm)
        except Exception as error:  # a chat template is somebody's program, and may raise anything
            return f"no prompt: {type(error).__name__}: {error}"
        return None

    def request(self, sample: Sample, turn: int, arm: str) -> Request:
        decoding = self.config.decoding
        return Request(
            sample_id=sample.sample_id,
            turn=turn,
            prompt_ids=self.prompt_ids(sample, turn, arm),
            max_new_tokens=decoding.max_new_tokens,
            eos_ids=self.runtime.eos_ids,
            noise_key=noise_key(decoding.seed, sample.sample_id, turn),
        )

    def finished_requests(self, samples: Sequence[Sample], records: Sequence[SampleRecord], arm: str) -> list[Request]:
        """The requests that this arm answered in repeat 0, in order (for passes after the timed ones)."""
        done = {(r.sample_id, r.turn) for r in records if r.arm == arm and r.repeat == 0 and r.decode_seconds is not None}
        return [
            self.request(sample, turn, arm)
            for sample in samples
            for turn in self.turns(sample)
            if (sample.sample_id, turn) in done
        ]

    def too_long(self, request: Request) -> bool:
        limit = self.config.data.max_prompt_tokens
        return data.too_long(request.prompt_ids, limit, self.context, request.max_new_tokens)

    def grade(self, sample: Sample, record: SampleRecord) -> bool | None:
        """Whether the answer is the set's; None for turns before the last, without an answer to compare, and failures."""
        kind = self.config.data.grade
        if kind is None or sample.answer is None or record.turn < len(sample.turns) - 1 or record.decode_seconds is None:
            return None
        return data.is_right(kind, self.tokenizer.decode(record.output_ids, skip_special_tokens=True), sample.answer)

    def remember(self, record: SampleRecord, only_arm: bool) -> None:
        """Keep an answer as history. A run of one arm has no baseline beside it: the method is the baseline."""
        whose = "baseline" if only_arm and self.config.data.history != "own" else record.arm
        answers = self._answers.setdefault((record.sample_id, whose), [])
        if len(answers) == record.turn:
            answers.append(record.output_ids)


def fitting(arm: Arm, requests: Sequence[Request]) -> list[Request]:
    """Warm-up prompts that the method can decode: the beginning of those that it cannot, and not those that no beginning of
    fits. What was measured with them is nobody's, so that the length of their text is free."""
    made = []
    for request in requests:
        short = request
        while not arm.method.stop.fits(short) and len(short.prompt_ids) > 1:
            short = replace(short, prompt_ids=short.prompt_ids[: len(short.prompt_ids) // 2])
        fits = arm.method.stop.fits(short)
        if short is not request or not fits:
            done = f"shortened to {counted(len(short.prompt_ids), 'token')}" if fits else "left out"
            say(f"{arm.name}: a warm-up prompt of {len(request.prompt_ids)} tokens does not fit method.stop and is {done}")
        made += [short] if fits else []
    return made


def warm_up_all(
    prompts: Prompts,
    samples: Sequence[Sample],
    arms: Mapping[str, Arm],
    threads: int | None,
    earlier: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Warm each arm up on first turns outside the evaluated set; reports the thread counts tried and chosen.

    threads: the one count for all, None to choose by speed. earlier: by arm, what the run's first session chose. In an A/A run
    one choice holds for both arms: made twice, it would be noise that no interval knows of.
    """
    chosen: dict[str, Any] = {}
    same = prompts.config.measure.mode == "aa"
    for name, arm in arms.items():
        requests = [prompts.request(sample, prompts.turns(sample)[0], name) for sample in samples]
        requests = fitting(arm, [request for request in requests if not prompts.too_long(request)])
        if requests:
            count = (earlier or {}).get(name, threads)
            if same and chosen:
                count = next(iter(chosen.values()))["threads"]
            opened_with = forward_threads.count()
            tried = warm_up(arm, requests, count)
            if arm.placement.threads != opened_with:  # trees were sized by what rows cost with the threads of the opening
                with arm.placement.applied():
                    asked("settle", name, arm.method, arm.method.settle)
                arm.run(requests[0], repeat=-1, order=-1, category=None)
            chosen[name] = {"seconds_per_token_by_threads": tried, "threads": arm.placement.threads}
    return chosen


def run_passes(
    prompts: Prompts,
    samples: Sequence[Sample],
    arms: Mapping[str, Arm],
    store: RunStore,
    finished: Mapping[tuple[str, int, int, str], SampleRecord] | None = None,
    session: int = 0,
    between: Callable[[], None] | None = None,
) -> None:
    """All repeats over all samples, every record on disk before the next sample starts.

    finished: records of an earlier session of the same run, which are not run again; session numbers this one. between: called
    after each sample, while no clock runs.
    """
    measure, done = prompts.config.measure, finished or {}
    for record in sorted(done.values(), key=lambda record: (record.repeat, record.turn)):
        if record.decode_seconds is not None:
            prompts.remember(record, len(arms) == 1)
    order = 1 + max((record.order for record in done.values()), default=-1)
    total = measure.repeats * len(arms) * sum(len(prompts.turns(sample)) for sample in samples)
    with Progress(total - len(done)) as progress:
        for repeat in range(measure.repeats):
            for arm in arms.values():
                arm.method.reset()  # nothing is known of the warm-up, nor of the answers of an earlier repeat
            for sample in samples:
                for turn in prompts.turns(sample):
                    names = list(arms)
                    random.Random(f"{measure.seed}/{repeat}/{sample.sample_id}/{turn}").shuffle(names)
                    records: list[SampleRecord] = []
                    refusal = prompts.refusal(sample, turn, arms)
                    for name in names:
                        old = done.get((sample.sample_id, turn, repeat, name))
                        if old is not None:
                            records.append(old)
                            continue
                        facts: dict[str, Any] = {
                            "repeat": repeat,
                            "order": order,
                            "category": sample.category,
                            "session": session,
                        }
                        rounds: list[Round] = []
                        request = prompts.request(sample, turn, name) if refusal is None else None
                        if request is None or prompts.too_long(request):
                            why = {"threads": arms[name].placement.threads, "error": refusal}
                            record = not_run(sample, turn, name, () if request is None else request.prompt_ids, **why, **facts)
                        else:
                            record, rounds = arms[name].run(request, **facts)
                            record = replace(record, right=prompts.grade(sample, record))
                        order += 1
                        store.append(record, rounds)
                        progress.sample(record)
                        if between is not None:
                            between()
                        records.append(record)
                        if record.decode_seconds is not None:
                            prompts.remember(record, len(arms) == 1)
                    if any(record.decode_seconds is None for record in records):
                        break  # a later turn would need this one's answers: the sample is over


def not_run(sample: Sample, turn: int, arm: str, prompt_ids: tuple[int, ...], **facts: Any) -> SampleRecord:
    """A turn that no arm was asked, recorded without numbers: for an `error`, or a prompt longer than the context."""
    return SampleRecord(
        sample_id=sample.sample_id,
        turn=turn,
        arm=arm,
        prompt_ids=prompt_ids,
        output_ids=(),
        finish_reason="prompt_too_long" if facts["error"] is None else "error",
        **facts,
    )

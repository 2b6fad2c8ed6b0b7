"""One run from start to status, in a straight line.

Configuration -> checks -> run folder with provenance -> models -> warm-up -> interleaved passes -> verdict -> summary.
Whatever can be refused is refused before a folder exists; whatever is finished is on disk before the next sample starts.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from specbench import data
from specbench.config.say import counted, say
from specbench.config.schema import RunConfig, validate
from specbench.engine.probe import probe_rollback
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import keyed_gumbel, noise_key
from specbench.engine.target import open_target
from specbench.measure.lossless import compare
from specbench.measure.metrics import SampleKey
from specbench.measure.noise import find_noise_floor
from specbench.measure.records.events import SampleRecord
from specbench.measure.records.store import WriteError, read_power, read_rounds, read_samples
from specbench.measure.summary import build_summary
from specbench.measure.timeline import build_trace
from specbench.pair.load import (
    draft_loader,
    eos_ids,
    load_model,
)
from specbench.pair.stages import stage_loader
from specbench.processes.locks import Held, hold
from specbench.processes.placement import Placement
from specbench.run import resume
from specbench.run.arms import Arm, clock_warnings
from specbench.run.console import final_table
from specbench.run.costs import NOT_ASKED, device_peaks, footprint, measure_energy, nothing_measured, watch_for
from specbench.run.hooks import Watchdog, asked, spared
from specbench.run.passes import Prompts, run_passes, warm_up_all
from specbench.run.prepare import Prepared, devices, num_devices, pair_uses_draft, prepare, run_facts
from specbench.run.resume import Opened


def run(config: RunConfig, on_open: Callable[[Path], None] | None = None) -> dict[str, Any]:
    """Do one run, or what is left of it, and return its summary. `on_open` is told the run folder as soon as there is one.

    Raises ConfigError before anything ran, or what ended the run (its folder then says so).
    """
    validate(config)
    if (summary := resume.finished(config)) is not None:
        say(f"{summary['run_folder']} is finished: nothing is measured again")
        return summary
    prepared = prepare(config)
    for warning in prepared.notes:
        say(warning)
    method_name = config.baseline_name if config.measure.mode == "aa" else config.method_name
    names = (method_name, config.baseline_name, prepared.dataset.name)
    turns = {s.sample_id: data.turns_to_generate(s, config.data.history) for s in prepared.samples}
    whole = [name for name, method in prepared.methods.items() if method.needs.scope == "session"]
    facts = {**run_facts(prepared), "num_lines": config.measure.repeats * len(prepared.methods) * sum(map(len, turns.values()))}
    with (
        hold(devices(prepared.pair), config.device_lock) as held,
        resume.open_run(config, names, facts, turns, whole) as opened,
    ):
        if on_open is not None:
            on_open(opened.store.folder)
        try:
            summary = measure(config, prepared, opened, held)
        except BaseException as error:
            with contextlib.suppress(WriteError):  # what ended the run is said, not that its end cannot be written either
                if isinstance(error, KeyboardInterrupt):
                    opened.store.set_status("interrupted")
                    say(f"what is finished is kept: resume={opened.store.folder} goes on")
                else:
                    opened.store.set_status("failed", error=f"{type(error).__name__}: {error}")
            if isinstance(error, SystemExit):  # some library's: it would be the exit status of a run that did not end
                raise RuntimeError(f"the process was told to exit ({error.code}) in the middle of the run") from error
            raise
    print(final_table(summary), file=sys.stderr)
    return summary


def measure(config: RunConfig, prepared: Prepared, opened: Opened, held: Held) -> dict[str, Any]:
    """Load, warm up, run all passes, judge, summarise. The store's status is success afterwards."""
    store = opened.store
    warnings: list[str] = []
    disturbed: list[str] = []
    watchdog = Watchdog(10 * config.engine.timeout_seconds)  # a prefill on a CPU may take minutes
    try:
        say(f"{store.folder}: loading the models, then {counted(len(prepared.warmup), 'prompt')} to warm up")
        runtime = load(config, prepared)
        runtime.watched_by(watchdog.alive)
        arms: dict[str, Arm] = {}
        for name, method in prepared.methods.items():
            asked("open", name, method, partial(method.open, runtime))
            placement = asked("placement", name, method, partial(getattr, method, "placement"))
            arms[name] = Arm(name, method, runtime.device, placement or Placement((), 1), watchdog)
        prompts = Prompts(config, prepared.tokenizer, runtime, prepared.context)
        for name, arm in arms.items():
            asked("pids", name, arm.method, arm.method.pids)
        watch = watch_for(arms, prepared.pair, pair_uses_draft(prepared))
        watch.start()
        chosen = warm_up_all(prompts, prepared.warmup, arms, config.engine.threads, opened.threads)
        if any(len(facts["seconds_per_token_by_threads"]) > 1 for facts in chosen.values()):
            disturbed += watch.warning_of_cores("thread counts were chosen")
        busy_in_warmup = watch.cores_busy_elsewhere()
        facts = {name: asked("facts", name, method, method.facts) for name, method in prepared.methods.items()}
        scopes = {name: method.needs.scope for name, method in prepared.methods.items()}
        store.write_run({"method_facts": facts, "scopes": scopes})
        store.write_run({"device": runtime.device, "num_devices": num_devices(prepared), **opened.warmup_facts(chosen)})
        gc.collect()
        gc.freeze()  # what is loaded now lives to the end: the collector need not look at it inside timed loops
        watch = watch_for(arms, prepared.pair, pair_uses_draft(prepared))
        watch.start()
        run_passes(prompts, prepared.samples, arms, store, opened.finished, opened.session, watch.look)
        disturbed += watch.warnings()
        if config.pair.draft_errors is None:  # a draft that replays text gets it from the target before the clock starts
            disturbed += clock_warnings(arms.values())
        seen = watch.facts() | {"cores_busy_in_warmup": busy_in_warmup}
        store.write_run({"watch": seen, "method_facts_at_end": facts_at_end(prepared, warnings)})
        samples, rounds = read_samples(store.folder), read_rounds(store.folder)
        own = prepared.methods["method"]
        lossless = spared("no lossless verdict", own, partial(judge_output, prepared, runtime, samples), None, warnings)
        longest = max((len(r.prompt_ids) for r in samples), default=0) + config.decoding.max_new_tokens
        peaks = device_peaks(samples, arms)
        memory = spared("no memory footprint", own, partial(footprint, runtime, arms, longest, peaks), None, warnings)
        energy = nothing_measured(NOT_ASKED)
        if config.measure.power != "off":
            requests = {name: prompts.finished_requests(prepared.samples, samples, name) for name in arms}
            if all(requests.values()):
                ask = partial(measure_energy, arms, requests, runtime, pair_uses_draft(prepared), store)
                energy, more = spared("no energy", own, ask, (nothing_measured("the energy pass failed"), []), warnings)
                warnings += more
    finally:
        gc.unfreeze()
        for name, method in prepared.methods.items():
            spared(f"close of the {name} arm failed", method, partial(watchdog.watched, method, method.close), None, warnings)
    status = "success" if any_finished(samples) else "failed"
    summary = build_summary(
        {**store.run, "run_folder": str(store.folder), "status": status},
        samples,
        rounds,
        lossless=lossless,
        energy=energy,
        memory=memory,
        warnings=[*disturbed, *warnings, *held.shared()],
        noise_floor=find_noise_floor(config.runs_dir, store.run),
    )
    store.write_summary(summary)
    if config.measure.trace:
        lanes = {spec.role: spec.device for spec in (prepared.pair.target, prepared.pair.draft) if spec is not None}
        power = read_power(store.folder)
        store.write_trace(build_trace(samples, rounds, power, starts=starts(samples), spans=spans(samples), devices=lanes))
    store.set_status(status)
    return summary


def facts_at_end(prepared: Prepared, warnings: list[str]) -> dict[str, Any]:
    """What the arms that keep what they saw settled for in the last pass."""
    kept = {name: method for name, method in prepared.methods.items() if method.needs.scope == "session"}
    return {name: spared("no facts at the end", method, method.facts, None, warnings) for name, method in kept.items()}


def any_finished(samples: Sequence[SampleRecord]) -> bool:
    """Whether there is a sample that a repeat finished with all its turns in all arms: without one there is no result."""
    finished: dict[tuple[str, int], bool] = {}
    for record in samples:
        where = (record.sample_id, record.repeat)
        finished[where] = finished.get(where, True) and record.decode_seconds is not None
    return any(finished.values())


def starts(samples: Sequence[SampleRecord]) -> dict[SampleKey, float]:
    """When each sample's decoding began, on the machine's monotonic clock."""
    return {record.key: record.started_at for record in samples if record.started_at is not None}


def spans(samples: Sequence[SampleRecord]) -> dict[SampleKey, list[tuple[float, float, str]]]:
    """What the workers did during each sample, on its own clock."""
    return {record.key: [(a, b, str(name)) for a, b, name in record.spans] for record in samples if record.spans}


def load(config: RunConfig, prepared: Prepared) -> Runtime:
    """Load the models that this process uses, each once, and probe their caches."""
    pair = prepared.pair
    target = load_model(pair.target, pair.vocab_size)
    probe_rollback(target, "target", pair.target.name)
    draft = None
    if pair.draft is not None and any(method.needs.draft == "local" for method in prepared.methods.values()):
        draft = load_model(pair.draft, pair.draft_vocab_size)
        probe_rollback(draft, "draft", pair.draft.name)
    ends = eos_ids(target.module, prepared.tokenizer)
    decoding, timeout = config.decoding, config.engine.timeout_seconds
    settings = (prepared.law, decoding.max_new_tokens, ends, timeout, config.measure.trace)
    return Runtime(pair, target, draft, *settings, load_draft=draft_loader(pair), load_stage=stage_loader(pair))


def judge_output(prepared: Prepared, runtime: Runtime, samples: Sequence[SampleRecord]) -> dict[str, Any]:
    """The lossless verdict, with the gap of each first divergence from a fresh single-sequence forward."""
    method, law = prepared.methods["method"], prepared.law
    refuse = None
    if not method.same_ids(law):
        refuse = f"rule {method.rule_for(law).name} keeps the target's law, not its tokens: see python -m specbench.check"
        if method.claim(law) == "lossy":
            refuse = f"rule {method.rule_for(law).name} is lossy"

    def gap_of(record: SampleRecord, position: int, other: int) -> float:
        prompt_ids, prefix_ids = record.prompt_ids, record.output_ids[:position]
        session = open_target(runtime.target)
        session.start(len(prompt_ids) + len(prefix_ids))
        logits = session.feed(prompt_ids, last_only=True)
        if prefix_ids:  # by itself: some rotary embeddings depend on where the prompt ended
            logits = session.feed(prefix_ids, last_only=True)
        scores = logits[0].float()
        if not law.greedy:
            key = noise_key(law.seed, record.sample_id, record.turn)
            scores = law.warp(logits)[0] + keyed_gumbel(key, [position], logits.shape[1], logits.device)[0]
        return float(scores.max() - min(scores[record.output_ids[position]], scores[other]))

    report = compare(samples, claim=method.claim(law), dtype=str(runtime.target.dtype), gap_of=gap_of, refuse=refuse)
    return report.as_dict()

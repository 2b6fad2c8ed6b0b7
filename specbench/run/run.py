"""One run from start to status, in a straight line.

Configuration -> checks -> run folder with provenance -> models -> warm-up -> interleaved passes -> verdict -> summary.
Whatever can be refused is refused before a folder exists; whatever is finished is on disk before the next sample starts.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench import data
from specbench.config.options import ConfigError
from specbench.config.say import say
from specbench.config.schema import RunConfig, validate
from specbench.config.specs import ModelSpec, PairSpec
from specbench.data import Dataset, Sample
from specbench.engine.probe import probe_rollback
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw, keyed_gumbel, noise_key
from specbench.engine.target import open_target
from specbench.measure.lossless import compare
from specbench.measure.metrics import SampleKey
from specbench.measure.noise import find_noise_floor
from specbench.measure.records import provenance
from specbench.measure.records.events import SampleRecord
from specbench.measure.records.store import read_power, read_rounds, read_samples
from specbench.measure.summary import build_summary
from specbench.measure.timeline import build_trace
from specbench.method import Method, create_method
from specbench.pair.load import (
    abilities,
    check_pair,
    context_length,
    draft_loader,
    eos_ids,
    load_model,
    load_tokenizer,
    pair_facts,
)
from specbench.pair.spec import specify
from specbench.processes.locks import Held, hold
from specbench.processes.placement import Placement, available_cores
from specbench.run import resume
from specbench.run.arms import Arm
from specbench.run.console import final_table
from specbench.run.costs import NOT_ASKED, device_peaks, footprint, measure_energy, nothing_measured, watch_for
from specbench.run.passes import Conversation, run_passes, warm_up_all
from specbench.run.resume import Opened


@dataclass
class Prepared:
    """Everything that could be checked without loading a weight."""

    law: SamplingLaw
    pair: PairSpec
    tokenizer: Any
    dataset: Dataset
    samples: tuple[Sample, ...]
    warmup: tuple[Sample, ...]
    methods: dict[str, Method]  # by arm; one arm when method and baseline are the same
    context: int | None


def run(config: RunConfig, on_open: Callable[[Path], None] | None = None) -> dict[str, Any]:
    """Do one run, or what is left of it, and return its summary. `on_open` is told the run folder as soon as there is one.

    Raises ConfigError before anything ran, or what ended the run (its folder then says so).
    """
    validate(config)
    if (summary := resume.finished(config)) is not None:
        say(f"{summary['run_folder']} is finished: nothing is measured again")
        return summary
    prepared = prepare(config)
    for warning in prepared.dataset.warnings:
        say(warning)
    method_name = config.baseline_name if config.measure.mode == "aa" else config.method_name
    names = (method_name, config.baseline_name, prepared.dataset.name)
    turns = {s.sample_id: data.turns_to_generate(s, config.data.history) for s in prepared.samples}
    with (
        hold(devices(prepared.pair), config.device_lock) as held,
        resume.open_run(config, names, run_facts(prepared), turns) as opened,
    ):
        if on_open is not None:
            on_open(opened.store.folder)
        try:
            summary = measure(config, prepared, opened, held)
        except KeyboardInterrupt:
            opened.store.set_status("interrupted")
            raise
        except BaseException as error:
            opened.store.set_status("failed", error=f"{type(error).__name__}: {error}")
            raise
    print(final_table(summary), file=sys.stderr)
    return summary


def prepare(config: RunConfig) -> Prepared:
    """All checks that need no weights: options, data, tokenizers, context."""
    decoding = config.decoding
    law = SamplingLaw(decoding.temperature, decoding.top_k, decoding.top_p, decoding.seed)
    methods = create_arms(config)
    needs_draft = any(method.needs.draft != "none" for method in methods.values())
    pair = specify(config.pair, config.engine.attention)
    if not needs_draft:
        pair = PairSpec(pair.name, pair.target, None)
    for method in methods.values():
        method.rule_for(law)
    refuse_unmet_needs(methods.values(), pair.target)
    dataset = data.load(config.data)
    samples = data.select(dataset, config.data)
    warmup = data.warmup_samples(dataset, samples, config.measure.warmup, config.data)
    tokenizer = load_tokenizer(pair.target)
    pair = check_pair(pair, tokenizer)
    return Prepared(law, pair, tokenizer, dataset, samples, warmup, methods, context_length(pair))


def refuse_unmet_needs(methods: Iterable[Method], target: ModelSpec) -> None:
    """Raise ConfigError for a target that cannot give what a method needs of it beside hidden states, which all have."""
    wanted = frozenset[str]().union(*(method.needs.of_target for method in methods)) - {"taps"}
    missing = wanted - abilities(target) if wanted else frozenset[str]()
    if missing:
        remedy = f"it cannot give {', '.join(sorted(missing))}, which the method needs: choose another target or method"
        raise ConfigError("pair.target", target.name, remedy)


def create_arms(config: RunConfig) -> dict[str, Method]:
    """The methods by arm. A method that is its own baseline runs alone, unless measure.mode=aa asks for the noise floor."""
    baseline = create_method(config.baseline, config.allow_targets, key="baseline")
    if config.measure.mode == "aa":
        return {"method": create_method(config.baseline, config.allow_targets, key="baseline"), "baseline": baseline}
    method = create_method(config.method, config.allow_targets)
    return {"method": method} if config.method == config.baseline else {"method": method, "baseline": baseline}


def measure(config: RunConfig, prepared: Prepared, opened: Opened, held: Held) -> dict[str, Any]:
    """Load, warm up, run all passes, judge, summarise. The store's status is success afterwards."""
    store = opened.store
    try:
        runtime = load(config, prepared)
        arms: dict[str, Arm] = {}
        for name, method in prepared.methods.items():
            method.open(runtime)
            arms[name] = Arm(name, method, runtime.device, method.placement or Placement((), 1))
        conversation = Conversation(config, prepared.tokenizer, runtime, prepared.context)
        chosen = warm_up_all(conversation, prepared.warmup, arms, config.engine.threads, opened.threads)
        store.write_run({"method_facts": {name: method.facts() for name, method in prepared.methods.items()}})
        store.write_run({"device": runtime.device, "num_devices": num_devices(prepared), **opened.warmup_facts(chosen)})
        gc.collect()
        gc.freeze()  # what is loaded now lives to the end: the collector need not look at it inside timed loops
        watch = watch_for(arms, prepared.pair, pair_uses_draft(prepared))
        watch.start()
        run_passes(conversation, prepared.samples, arms, store, opened.finished, opened.session, watch.look)
        disturbed = watch.warnings()
        store.write_run({"watch": watch.facts()})
        samples, rounds = read_samples(store.folder), read_rounds(store.folder)
        lossless = judge_output(prepared, runtime, samples)
        longest = max((len(r.prompt_ids) for r in samples), default=0) + config.decoding.max_new_tokens
        memory = footprint(runtime, arms, longest, device_peaks(samples, arms))
        energy, warnings = nothing_measured(NOT_ASKED), list[str]()
        if config.measure.power != "off":
            requests = {name: conversation.finished_requests(prepared.samples, samples, name) for name in arms}
            if all(requests.values()):
                energy, warnings = measure_energy(arms, requests, runtime, pair_uses_draft(prepared), store)
    finally:
        gc.unfreeze()
        for method in prepared.methods.values():
            method.close()
    finished = any(record.error is None and record.decode_seconds is not None for record in samples)
    status = "success" if finished else "failed"
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


def pair_uses_draft(prepared: Prepared) -> bool:
    return any(method.needs.draft != "none" for method in prepared.methods.values())


def starts(samples: Sequence[SampleRecord]) -> dict[SampleKey, float]:
    """When each sample's decoding began, on the machine's monotonic clock."""
    return {record.key: record.started_at for record in samples if record.started_at is not None}


def spans(samples: Sequence[SampleRecord]) -> dict[SampleKey, list[tuple[float, float, str]]]:
    """What the workers did during each sample, on its own clock."""
    return {record.key: [(a, b, str(name)) for a, b, name in record.spans] for record in samples if record.spans}


def devices(pair: PairSpec) -> set[str]:
    """The torch devices that the run computes on."""
    return {pair.target.device} | ({pair.draft.device} if pair.draft is not None else set())


def num_devices(prepared: Prepared) -> int:
    """Devices that the method arm computes on; CPU cores count as one device, however they are split."""
    pair, method = prepared.pair, prepared.methods["method"]
    used = {pair.target.device} | ({pair.draft.device} if pair.draft is not None and method.needs.draft != "none" else set())
    return len(used)


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
    return Runtime(pair, target, draft, *settings, load_draft=draft_loader(pair))


def judge_output(prepared: Prepared, runtime: Runtime, samples: Sequence[SampleRecord]) -> dict[str, Any]:
    """The lossless verdict, with the gap of each first divergence from a fresh single-sequence forward."""
    method, law = prepared.methods["method"], prepared.law
    refuse = None
    if not method.same_ids(law):
        refuse = f"rule {method.rule_for(law).name} keeps the target's law, not its tokens: see python -m specbench.check"
        if method.claim(law) == "lossy":
            refuse = f"rule {method.rule_for(law).name} is lossy"
    keys = {
        (record.prompt_ids, record.output_ids): noise_key(law.seed, record.sample_id, record.turn)
        for record in samples
        if record.arm == "method"
    }

    def gap_of(prompt_ids: Sequence[int], prefix_ids: Sequence[int], token_a: int, token_b: int) -> float:
        key = next(
            k
            for (prompt, ids), k in keys.items()
            if prompt == tuple(prompt_ids) and ids[: len(prefix_ids)] == tuple(prefix_ids)
        )
        session = open_target(runtime.target)
        session.start(len(prompt_ids) + len(prefix_ids))
        logits = session.feed([*prompt_ids, *prefix_ids], last_only=True)
        scores = logits[0].float()
        if not law.greedy:
            scores = law.warp(logits)[0] + keyed_gumbel(key, [len(prefix_ids)], logits.shape[1], logits.device)[0]
        return float(scores.max() - min(scores[token_a], scores[token_b]))

    report = compare(samples, claim=method.claim(law), dtype=str(runtime.target.dtype), gap_of=gap_of, refuse=refuse)
    return report.as_dict()


def run_facts(prepared: Prepared) -> dict[str, Any]:
    """What run.json says about the run beside its options."""
    return {
        "pair": pair_facts(prepared.pair),
        "data": data_facts(prepared),
        "warnings": [*prepared.dataset.warnings, *shared_device(prepared), *set_acceptance(prepared.pair)],
        "provenance": provenance.collect(),
    }


def shared_device(prepared: Prepared) -> list[str]:
    """Processes that compute at once need devices of their own: what comes out of one device's turns is no basis for speed."""
    pair, method = prepared.pair, prepared.methods["method"]
    if method.needs.draft != "worker" or pair.draft is None or pair.draft.device != pair.target.device:
        return []
    if pair.target.device == "cpu":
        if len(available_cores()) > 1:
            return []
        return ["draft and target share one CPU core and take turns: correct, but no basis for speed"]
    return [f"draft and target share {pair.target.device} and take turns: correct, but no basis for speed"]


def set_acceptance(pair: PairSpec) -> list[str]:
    """A replayed draft is an experiment on a method, never a finding about a pair."""
    if pair.draft is None or pair.draft.replay is None:
        return []
    how = f"pair.draft_errors={pair.draft.replay.errors}"
    return [f"the draft replays the target's text ({how}): acceptance is set and not measured, its speed-up is no pair's"]


def data_facts(prepared: Prepared) -> dict[str, Any]:
    dataset = prepared.dataset
    return {
        "name": dataset.name,
        "source": dataset.source,
        "file": Path(dataset.file).name,
        "sha256": dataset.sha256,
        "content_sha256": dataset.content_sha256,
        "revision": dataset.revision,
        "sample_ids": [sample.sample_id for sample in prepared.samples],
    }

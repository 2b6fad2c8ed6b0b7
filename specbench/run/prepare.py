"""What a run is made of, checked before a folder exists and a weight is loaded, and what run.json says of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench import data
from specbench.config.options import ConfigError, UnfitError
from specbench.config.say import counted
from specbench.config.schema import RunConfig
from specbench.config.specs import PairSpec
from specbench.data import Dataset, Sample
from specbench.engine.sampling import SamplingLaw
from specbench.measure.records import provenance
from specbench.method import Method, create_method
from specbench.pair.backend import choose_backend
from specbench.pair.load import (
    abilities,
    check_pair,
    context_length,
    load_tokenizer,
    num_layers,
    pair_facts,
    refuse_ids_without_rows,
    refuse_recomputed,
)
from specbench.pair.spec import specify
from specbench.pair.stages import stage_loader
from specbench.processes.placement import available_cores

DEPTHS = ("draft_length", "max_lookahead", "max_depth")  # options of methods: tokens of a draft, one behind the other
ROWS = ("num_nodes",)  # tokens of a draft, all together
SHORT = 64  # what may be drafted however short the answers: a method's own defaults stay possible


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
    prompt_warnings: list[str]
    notes: list[str]  # what is said before anything runs


def prepare(config: RunConfig) -> Prepared:
    """All checks that need no weights: options, data, tokenizers, context."""
    decoding = config.decoding
    refuse_more_threads(config.engine.threads)
    law = SamplingLaw(decoding.temperature, decoding.top_k, decoding.top_p, decoding.seed)
    methods = create_arms(config)
    for method in methods.values():
        method.rule_for(law)
    pair = fitting_pair(config, list(methods.values()))
    dataset = data.load(config.data)
    samples = data.select(dataset, config.data)
    warmup = data.warmup_samples(dataset, samples, config.measure.warmup, config.data)
    tokenizer = load_tokenizer(pair.target)
    pair, instead = choose_backend(check_pair(pair, tokenizer), config.engine.backend)
    context = context_length(pair)
    refuse_endless_drafts(config, context)
    if config.data.context_tokens is not None:
        refuse_endless_prompts(config, context)
        samples, warmup = (data.padded(some, tokenizer, config.data) for some in (samples, warmup))
        dataset = data.named(dataset, config.data.context_tokens)
    history, template = config.data.history, config.data.template
    prompts = data.first_prompts([*samples, *warmup], history, tokenizer, template)
    refuse_ids_without_rows(pair.target, tokenizer, prompts)
    warnings = data.prompt_warnings(samples, prompts, tokenizer, template)
    limits = (config.data.max_prompt_tokens, decoding.max_new_tokens)
    refuse_too_long(config, [len(prompts[sample.sample_id]) for sample in samples], context)
    run = {name: len(ids) for name, ids in prompts.items() if not data.too_long(ids, limits[0], context, limits[1])}
    refuse_recomputed(pair.target, run, decoding.max_new_tokens)
    notes = [*config.notes, *dataset.warnings, *([instead] if instead is not None else [])]  # why another backend runs
    return Prepared(law, pair, tokenizer, dataset, samples, warmup, methods, context, warnings, notes)


def why_unfit(config: RunConfig) -> str | None:
    """What the pair lacks for the run's methods, in one line; None: nothing, or it is the run itself that will be refused."""
    try:
        fitting_pair(config, list(create_arms(config).values()))
    except UnfitError as error:
        return str(error)
    except ConfigError:
        return None
    return None


def fitting_pair(config: RunConfig, methods: Sequence[Method]) -> PairSpec:
    """The configured pair, without a draft model that nobody needs. Raises as `refuse_unmet_needs`, and ConfigError."""
    pair = specify(config.pair, config.engine.attention)
    if all(method.needs.draft == "none" for method in methods):
        pair = PairSpec(pair.name, pair.target, None)
    refuse_unmet_needs(methods, pair)
    return pair


def refuse_unmet_needs(methods: Sequence[Method], pair: PairSpec) -> None:
    """Raise UnfitError for a pair without the draft model that a method needs, a target that cannot give what it needs beside
    hidden states, which all have, too few layers, or nothing where a method's options must name something (heads, a
    datastore); ConfigError where what they name is not there."""
    target = pair.target
    if pair.draft is None and any(method.needs.draft != "none" for method in methods):
        raise UnfitError("pair.draft", None, "the method drafts with a model: name one")
    for method in methods:
        method.look_up(pair)
    needs = [method.needs for method in methods]  # not joined: one may draft here and the other in a process of its own
    wanted = frozenset[str]().union(*(need.of_target for need in needs)) - {"taps"}
    missing = wanted - abilities(target) if wanted else frozenset[str]()
    if missing:
        remedy = f"it cannot give {', '.join(sorted(missing))}, which the method needs: choose another target or method"
        raise UnfitError("pair.target", target.name, remedy)
    least = max(need.layers for need in needs)
    layers = num_layers(target) if least else 0
    if layers < least:
        remedy = f"{target.name} has {layers} layers, one of which is left to verify with: at most {layers - 1}"
        raise UnfitError("method.exit_layer", least - 1, remedy)
    load = stage_loader(pair)
    for stage in {stage: None for need in needs for stage in need.stages}:
        assert load is not None, "stages need a draft too"
        load(stage)


def refuse_more_threads(threads: int | None) -> None:
    """Raise ConfigError for more CPU threads than this machine has cores: they would wait for each other."""
    if threads is not None and threads > (cores := os.cpu_count() or 1):
        remedy = f"this machine has {counted(cores, 'core')}: at most {cores}, or null (chosen in the warm-up)"
        raise ConfigError("engine.threads", threads, remedy)


def refuse_endless_prompts(config: RunConfig, context: int | None) -> None:
    """Raise ConfigError for prompts made longer than the pair has positions beside an answer, before a text is laid out."""
    tokens, new = config.data.context_tokens, config.decoding.max_new_tokens
    if tokens is not None and context is not None and tokens + new > context:
        remedy = f"the pair has {context} positions, and an answer may take {new} of them (decoding.max_new_tokens): at most "
        raise ConfigError("data.context_tokens", tokens, f"{remedy}{max(1, context - new)}")


def refuse_endless_drafts(config: RunConfig, context: int | None) -> None:
    """Raise ConfigError for a draft longer than any answer, and for more nodes than the pair has positions: room that is
    reserved and never used, or more of it than there is."""
    longest = max(config.decoding.max_new_tokens, SHORT)
    answer = (
        f"an answer has at most decoding.max_new_tokens={config.decoding.max_new_tokens}, and what lies behind is thrown away"
    )
    for arm in ("method", "baseline"):
        node = getattr(config, arm)
        stop = node.get("stop")
        nodes = {arm: node} | ({f"{arm}.stop": stop} if isinstance(stop, Mapping) else {})
        for place, options in nodes.items():
            for name in (*DEPTHS, *ROWS):
                value = options.get(name)
                most, why = (longest, answer) if name in DEPTHS else (context, f"the pair has {context} positions")
                if isinstance(value, int) and most is not None and value > most:
                    raise ConfigError(f"{place}.{name}", value, f"{why}: at most {most}")


def refuse_too_long(config: RunConfig, lengths: Sequence[int], context: int | None) -> None:
    """Raise ConfigError where no sample can be run: all would be left out, when the models are loaded. lengths: of prompts."""
    shortest, longest, new = min(lengths), config.data.max_prompt_tokens, config.decoding.max_new_tokens
    if not data.too_long([0] * shortest, longest, context, new):
        return
    found = f"all {len(lengths)} prompts are too long, the shortest has {shortest} tokens"
    if longest is not None and shortest > longest:
        raise ConfigError("data.max_prompt_tokens", longest, found)
    remedy = f"prompt and answer have the pair's {context} positions, and {found}: take fewer, or other prompts"
    raise ConfigError("decoding.max_new_tokens", new, remedy)


def create_arms(config: RunConfig) -> dict[str, Method]:
    """The methods by arm. A method that is its own baseline runs alone, unless measure.mode=aa asks for the noise floor."""
    method = create_method(config.method, config.allow_targets)  # where it is not asked its options are looked at all the same
    baseline = create_method(config.baseline, config.allow_targets, key="baseline")
    if config.measure.mode == "aa":
        method = create_method(config.baseline, config.allow_targets, key="baseline")
        return {"method": method, "baseline": baseline}
    return {"method": method} if config.method == config.baseline else {"method": method, "baseline": baseline}


def pair_uses_draft(prepared: Prepared) -> bool:
    return any(method.needs.draft != "none" for method in prepared.methods.values())


def devices(pair: PairSpec) -> set[str]:
    """The torch devices that the run computes on."""
    return {pair.target.device} | ({pair.draft.device} if pair.draft is not None else set())


def num_devices(prepared: Prepared) -> int:
    """Devices that the method arm computes on; CPU cores count as one device, however they are split."""
    pair, method = prepared.pair, prepared.methods["method"]
    used = {pair.target.device} | ({pair.draft.device} if pair.draft is not None and method.needs.draft != "none" else set())
    return len(used)


def run_facts(prepared: Prepared) -> dict[str, Any]:
    """What run.json says about the run beside its options."""
    return {
        "pair": pair_facts(prepared.pair),
        "data": data_facts(prepared),
        "folders": folder_facts(prepared),
        "warnings": [
            *prepared.notes,
            *shared_device(prepared),
            *set_acceptance(prepared.pair),
            *prepared.prompt_warnings,
            *kept_state(prepared),
        ],
        "provenance": provenance.collect(),
    }


def shared_device(prepared: Prepared) -> list[str]:
    """Processes that compute at once need devices of their own: what comes out of one device's turns is no basis for speed."""
    pair, method = prepared.pair, prepared.methods["method"]
    if method.needs.draft != "worker" or pair.draft is None:
        return []
    num_drafts, is_shared = max(1, method.schedule.num_workers), pair.draft.device == pair.target.device
    if pair.draft.device != "cpu":
        who = "draft and target" if is_shared else f"{num_drafts} stages"
        if num_drafts + is_shared == 1:
            return []
        return [f"{who} share {pair.draft.device} and take turns: correct, but no basis for speed"]
    cores, processes = len(available_cores()), num_drafts + is_shared
    if processes <= cores:
        return []
    if processes == 2:
        return ["draft and target share one CPU core and take turns: correct, but no basis for speed"]
    return [f"{processes} processes share {cores} CPU cores and take turns: correct, but no basis for speed"]


def set_acceptance(pair: PairSpec) -> list[str]:
    """A replayed draft is an experiment on a method, never a finding about a pair."""
    if pair.draft is None or pair.draft.replay is None:
        return []
    how = f"pair.draft_errors={pair.draft.replay.errors}"
    return [f"the draft replays the target's text ({how}): acceptance is set and not measured, its speed-up is no pair's"]


def kept_state(prepared: Prepared) -> list[str]:
    """What a method learned from earlier prompts makes later ones faster: said, so that nobody reads it as cold."""
    return [
        f"the {arm} arm keeps what it saw from prompt to prompt: its figures are those of this order (every repeat begins cold)"
        for arm, method in prepared.methods.items()
        if method.needs.scope == "session"
    ]


def folder_facts(prepared: Prepared) -> dict[str, str | None]:
    """sha256 of what lies in the folders that the methods' options name, by option: `method.heads`."""
    return {
        f"{arm}.{option}": provenance.folder_hash(folder)
        for arm, method in prepared.methods.items()
        for option, folder in method.look_up(prepared.pair).items()
    }


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

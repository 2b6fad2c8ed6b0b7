"""What a token takes beside what reading the weights once takes: specbench's backends and transformers' ways to decode.

A token of autoregressive decoding reads every weight but the embedding table, so bytes over measured bandwidth is the floor. A
copy reads and writes: its bytes count twice. Seconds per token are of decoding alone: ours as recorded, transformers' as the
time for all tokens less the time for the first. Contenders of one backend come one after the other in random order.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from specbench.config.options import ConfigError
from specbench.config.schema import PairConfig
from specbench.config.specs import PairSpec
from specbench.engine.model import Model
from specbench.engine.request import Request
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw
from specbench.method import Method
from specbench.methods.chains.autoregressive import Autoregressive
from specbench.methods.chains.speculative import Speculative
from specbench.pair.backend import choose_backend
from specbench.pair.load import check_pair, load_model, load_tokenizer
from specbench.pair.spec import specify
from specbench.qualify.plan import PASSED, Task, result
from specbench.qualify.theirs import generate

TOKENS, DRAFT_LENGTH, REPEATS = 64, 4, 5
PROMPT = "def add(a, b):\n    return a + b\n\n\ndef multiply(a, b):\n    "
BACKENDS = ("eager", "native", "compiled", "graph")
Contender = Callable[[], tuple[float, list[int]]]  # seconds per token and ids


def run(task: Task) -> dict[str, Any]:
    """Facts; no threshold is part of the verdict, which names the shares."""
    transformers_logging.set_verbosity_error()
    sizes = ("8b", "1b") if task.on_accelerator else ("tiny", "tiny")
    bandwidth = copy_bandwidth(task.device, 2**31 if task.on_accelerator else 2**27)
    notes = [f"a copy moves {bandwidth / 1e9:,.0f} GB/s, read and written bytes both counted"]
    rows: list[tuple[Any, ...]] = []
    for size in dict.fromkeys(sizes):
        for backend in BACKENDS:
            pair, why = pair_of(f"shaped:{size}", f"shaped:{sizes[1]}:0.8", task.device, backend)
            if why is not None:
                notes.append(f"{size}, {backend}: {why}")
            elif task.left < 40:
                notes.append(f"{size}, {backend}: not reached")
            else:
                task.say(f"{size}, {backend}")
                found = measured(pair, task, size == sizes[0])
                notes += held_by_programs(f"{size}, {backend}", found["held"])
                rows += [
                    (size, f"{backend}: {name}" if is_ours else name, *rest) for name, is_ours, *rest in timed(found, bandwidth)
                ]
    best = max((row[-1] for row in rows if row[-1] is not None), default=0.0)
    columns = ("shape", "contender", "ms a token", "tokens/s", "same ids", "share of the floor")
    table = {"columns": columns, "rows": rows}
    verdict = f"{bandwidth / 1e9:,.0f} GB/s; the fastest autoregressive decoding takes the floor's time at {best:.0%}"
    return result(PASSED, verdict, tables=[table], notes=notes, bandwidth_bytes_per_second=bandwidth)


def copy_bandwidth(device: str, size: int, turns: int = 8) -> float:
    """Bytes read and written per second by the best of some copies of `size` bytes."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    sink, best = torch.empty_like(source), 0.0
    for _ in range(turns):
        seconds = clocked(lambda: sink.copy_(source), device)
        best = max(best, 2 * size / seconds)
    return best


def clocked(work: Callable[[], Any], device: str) -> float:
    """Seconds of a piece of work, the device's queue empty before and after."""
    settle(device)
    begin = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - begin


def settle(device: str) -> None:
    """Wait for what the device still has to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def pair_of(target: str, draft: str, device: str, backend: str) -> tuple[PairSpec, str | None]:
    """A pair on a backend; with why it is on another one."""
    dtype = "bfloat16" if device.startswith("cuda") else "float32"
    places = {f"{role}_{what}": value for role in ("target", "draft") for what, value in (("device", device), ("dtype", dtype))}
    spec = specify(PairConfig(target=target, draft=draft, **places))  # type: ignore[arg-type]
    try:
        pair, why = choose_backend(check_pair(spec, load_tokenizer(spec.target)), backend)
    except ConfigError as error:  # graphs without a CUDA device
        return spec, str(error)
    if pair.target.backend != backend:
        why = why or f"{pair.target.backend} runs instead"
    return pair, why


def measured(pair: PairSpec, task: Task, with_draft: bool) -> dict[str, Any]:
    """Contenders' seconds per token and ids, and the target's bytes, on one backend. Models are gone afterwards."""
    target = load_model(pair.target, pair.vocab_size)
    draft = load_model(pair.draft, pair.draft_vocab_size) if with_draft and pair.draft is not None else None
    prompt = load_tokenizer(pair.target)(PROMPT).input_ids
    methods: dict[str, Method] = {"autoregressive": Autoregressive()}
    if draft is not None:
        methods["speculative"] = Speculative(draft_length=DRAFT_LENGTH)
    named: dict[str, Contender] = {}
    try:
        for name, method in methods.items():
            method.open(Runtime(pair, target, draft, SamplingLaw(), TOKENS, frozenset()))
            named[name] = ours(method, prompt)
        if pair.target.backend == "eager":
            named |= theirs(target, draft, prompt, task.on_accelerator)
        outputs, seconds = {}, {name: [] for name in named}  # type: dict[str, list[int]], dict[str, list[float]]
        for name, decode in list(named.items()):
            try:
                outputs[name] = decode()[1]  # the warm-up, and what compiles
            except Exception as error:  # of transformers' own ways
                task.say(f"{name}: {type(error).__name__}: {error}")
                del named[name], seconds[name]
        chance = random.Random(0)
        for turn in range(REPEATS):
            if turn and task.left < 30:
                break
            for name in chance.sample(list(named), len(named)):
                seconds[name].append(named[name]()[0])
        held = method.memory_bytes()  # of the one with most models
    finally:
        for method in methods.values():
            method.close()
    skipped = target.module.get_input_embeddings().weight
    read = sum(p.numel() * p.element_size() for p in target.module.parameters()) - skipped.numel() * skipped.element_size()
    found = {"seconds": seconds, "outputs": outputs, "read_bytes": read, "ours": list(methods), "held": held}
    del target, draft, methods, named
    gc.collect()
    if task.on_accelerator:
        torch.cuda.empty_cache()
    return found


def held_by_programs(where: str, held: Mapping[str, int]) -> list[str]:
    """One line, for a backend whose programs hold memory beside weights and cache."""
    kinds = ("programs", "recordings")
    parts = [f"{part.replace('_', ' ')} {size / 2**20:,.1f} MiB" for part, size in held.items() if part.endswith(kinds)]
    return [f"{where} holds beside weights and cache: {', '.join(parts)}"] if parts else []


def timed(found: dict[str, Any], bandwidth: float) -> list[tuple[Any, ...]]:
    """(name, ours, ms a token, tokens/s, same ids as autoregressive, floor over measured) of each; the last of AR alone."""
    rows = []
    floor = found["read_bytes"] / bandwidth
    for name, values in found["seconds"].items():
        seconds = statistics.median(values)
        same = "yes" if found["outputs"][name] == found["outputs"]["autoregressive"] else "no"
        share = floor / seconds if name not in ("speculative", "assisted generation") else None
        rows.append((name, name in found["ours"], 1e3 * seconds, 1 / seconds, same, share))
    return rows


def ours(method: Method, prompt: Sequence[int]) -> Contender:
    """A method's decoding."""

    def decode() -> tuple[float, list[int]]:
        outcome = method.decode(Request("0", 0, tuple(prompt), TOKENS, frozenset(), noise_key=0))
        return outcome.decode_seconds / (len(outcome.output_ids) - 1), outcome.output_ids

    return decode


def theirs(target: Model, draft: Model | None, prompt: Sequence[int], compiled: bool) -> dict[str, Contender]:
    """`generate`: eager, on a static cache, that compiled (where `compiled`), and assisted by the draft."""
    module, device, length = target.module, str(target.device), len(prompt) + TOKENS
    kinds: dict[str, dict[str, Any]] = {"generate": {}, "generate, static cache": {"static_length": length}}
    if compiled:
        kinds["generate, static and compiled"] = {"static_length": length, "compiled": True}
    if draft is not None:
        kinds["assisted generation"] = {"draft": draft.module, "draft_length": DRAFT_LENGTH}

    def contender(kind: dict[str, Any]) -> Contender:
        whole, first = generate(module, TOKENS, **kind), generate(module, 1, **kind)

        def decode() -> tuple[float, list[int]]:
            kept: list[list[int]] = []
            seconds = clocked(lambda: kept.append(whole(prompt)), device) - clocked(lambda: first(prompt), device)
            return seconds / (len(kept[0]) - 1), kept[0]

        return decode

    return {name: contender(kind) for name, kind in kinds.items()}

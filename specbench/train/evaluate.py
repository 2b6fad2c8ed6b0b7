"""Measurements for the built-in pair's card: text quality, acceptance and forward times, through the engine's own sessions."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from specbench import data
from specbench.config.paths import CONF_DIR
from specbench.config.schema import DataConfig
from specbench.engine.model import Model
from specbench.engine.session import Session
from specbench.engine.target import open_session
from specbench.measure.theory import formulas, recorded
from specbench.train.generate import distinct_share

DATASETS = ("humaneval", "mt_bench", "specbench", "refactorchat")
ROWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
DEPTH = 8  # acceptance is listed for drafts 1 to 8


def load_part(folder: Path) -> Model:
    """A part as the engine runs it on a CPU: float32."""
    return Model.wrap(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def prompts_of(
    name: str, tokenizer: Any, num_samples: int, context: int, new_tokens: int
) -> tuple[data.Dataset, list[list[int]]]:
    """First turns of `num_samples` samples of a data set as prompt ids, without those that do not fit into the context."""
    options: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "data" / f"{name}.yaml"))
    config = DataConfig(**{"limit": num_samples} | options)
    dataset = data.load(config)
    prompts = [data.render(sample, 0, (), tokenizer, "auto") for sample in data.select(dataset, config)]
    return dataset, [ids for ids in prompts if not data.too_long(ids, None, context, new_tokens)]


def greedy_text(model: Model, prompt: list[int], new_tokens: int, eos_ids: set[int]) -> list[int]:
    """What the model writes after `prompt`, up to and with its end-of-text token."""
    session = open_session(model)
    session.start(len(prompt) + new_tokens)
    token = int(session.prefill(prompt).logits.argmax())
    written = [token]
    while token not in eos_ids and len(written) < new_tokens:
        token = int(session.feed([token]).argmax())
        written.append(token)
    return written


def matches(draft: Model, prompt: list[int], written: list[int]) -> list[bool]:
    """For each token of `written` after the first: whether the draft, having read all before it, would have drafted it."""
    session = open_session(draft)
    session.start(len(prompt) + len(written))
    logits = session.feed([*prompt, *written[:-1]])
    return (logits[len(prompt) :].argmax(-1) == torch.tensor(written[1:])).tolist()


def forward_milliseconds(model: Model, context: int = 256, repeats: int = 31) -> dict[int, float]:
    """Median milliseconds of one forward over 1 to 16 rows after `context` tokens, with the threads that torch is set to."""
    session = Session(model)
    session.start(context + max(ROWS))
    session.prefill([1 + i % 200 for i in range(context)])
    times = {}
    for rows in ROWS:
        measured = []
        for _ in range(repeats + 3):
            begin = time.perf_counter()
            session.feed(list(range(1, rows + 1)))
            measured.append((time.perf_counter() - begin) * 1e3)
            session.rollback(context)
        times[rows] = statistics.median(measured[3:])
    return times


def measure_pair(folder: Path, num_samples: int, new_tokens: int, threads: int) -> dict[str, Any]:
    """Everything that the card says about the parts in `folder`; run it on an idle machine."""
    torch.set_num_threads(threads)
    names = sorted(p.parent.name for p in folder.glob("*/config.json"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "target")
    models = {name: load_part(folder / name) for name in names}
    times = {name: forward_milliseconds(model) for name, model in models.items()}
    facts: dict[str, Any] = {"threads": threads, "new_tokens": new_tokens, "milliseconds": times, "data": {}, "drafts": {}}
    texts: dict[str, list[tuple[list[int], list[int]]]] = {}
    for name in DATASETS:
        dataset, prompts = prompts_of(name, tokenizer, num_samples, models["target"].context_length or 0, new_tokens)
        texts[name] = [(ids, greedy_text(models["target"], ids, new_tokens, {tokenizer.eos_token_id})) for ids in prompts]
        shares = [share for _, written in texts[name] if (share := distinct_share(written)) is not None]
        facts["data"][name] = {
            "name": dataset.name,
            "num_prompts": len(prompts),
            "median_prompt_tokens": statistics.median(len(ids) for ids in prompts),
            "mean_written_tokens": statistics.mean(len(written) for _, written in texts[name]),
            "median_distinct_4grams": statistics.median(shares) if shares else None,
        }
    for name, model in models.items():
        if name.startswith(("draft", "target_half")):
            facts["drafts"][name] = {key: _worth(model, texts[key], times[name], times["target"]) for key in DATASETS}
    return facts


def _worth(
    draft: Model, texts: list[tuple[list[int], list[int]]], draft_ms: dict[int, float], target_ms: dict[int, float]
) -> dict[str, Any]:
    """Acceptance and predicted speed-ups of one draft on one data set."""
    right = [matches(draft, prompt, written) for prompt, written in texts]
    cost = draft_ms[1] / target_ms[1]
    share = sum(map(sum, right)) / max(sum(map(len, right)), 1)
    by_position = recorded.acceptance_by_position(right, DEPTH)

    def rows_cost(rows: int) -> float:
        return next((ms for n, ms in sorted(target_ms.items()) if n >= rows), target_ms[max(ROWS)]) / target_ms[1]

    best = max(range(1, DEPTH + 1), key=lambda g: recorded.speculative_speedup(right, g, cost, rows_cost))
    speculative = {g: recorded.speculative_speedup(right, g, cost, rows_cost) for g in sorted({4, best})}
    return {
        "cost": cost,
        "token_acceptance": share,
        "acceptance_by_position": by_position,
        "accepted_of_4": sum(recorded.acceptance_by_position(right, 4)),
        "formula_speedup_4": formulas.speedup_sequential(share, 4, cost),
        "speculative_speedup_4": speculative[4],
        "best_draft_length": best,
        "speculative_speedup_best": speculative[best],
        "asynchronous_speedup": recorded.asynchronous_speedup(right, DEPTH, cost, rows_cost),
        "asynchronous_bound": formulas.bound_free_running(cost),
    }

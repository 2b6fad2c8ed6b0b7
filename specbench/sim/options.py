"""The options of `python -m specbench.sim`: its own, and a run's beside them (pair, method.<option>, runs_dir)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from specbench.config.errors import unknown
from specbench.config.options import ABOVE_ZERO, ConfigError, check_ranges, each, number, option, text, whole
from specbench.config.paths import CONF_DIR
from specbench.config.schema import RunConfig
from specbench.engine.tree import MOST_NODES
from specbench.sim.hardware import preset_names

METHODS = ("speculative", "amusd", "pearl", "ssd", "dsi")  # of a comparison, where nothing is named


# What is played out in minutes, and kept in memory.
MOST_TEXTS, MOST_TOKENS, MOST_ROWS, MOST_REQUESTS = 100_000, 10_000_000, 1_000_000, 10_000_000
A_METHOD = r"(?!(null|true|false|nan|inf)$)[A-Za-z_][\w.-]*"  # a file's name that a command line takes for a text
_RATE = (number, 0.0, 1.0, "rates between 0 and 1")


@dataclass
class SimConfig:
    """acceptance: a rate; several by run length as 0.8/0.7/0.6; a pattern of wrong drafts (`iid:0.2`, `bursts:8+4`); a run
    folder. stage_acceptance: of a chain's stages behind the first (`acceptance.in_chain`).
    acceptances, draft_lengths, draft_shares: what the comparison runs over; a share is of the target's parameters.
    samples x tokens: texts of each cell. requests_per_second, num_requests, max_batch: of each replica that serves.
    """

    devices: tuple[str, ...] = option(None, each, text, "name a preset or a file of measured costs")
    methods: tuple[str, ...] = option(None, each, text, "name methods of conf/method", A_METHOD)
    acceptance: str = option("0.8", text, "a rate, rates by run length (0.8/0.7), a pattern of wrong drafts, or a run folder")
    stage_acceptance: tuple[float, ...] = option((), each, *_RATE, none=True)
    acceptances: tuple[float, ...] = option(None, each, *_RATE)
    draft_lengths: tuple[int, ...] = option(None, each, whole, 1, high=MOST_NODES)
    draft_shares: tuple[float, ...] = option(None, each, number, ABOVE_ZERO, 1.0, "shares above 0 and up to 1")
    samples: int = option(4, whole, 1, high=MOST_TEXTS)
    tokens: int = option(128, whole, 2, high=MOST_ROWS)
    prompt_tokens: int = option(128, whole, 1, high=MOST_ROWS)
    seed: int = option(0, whole, 0)
    requests_per_second: tuple[float, ...] = option(None, each, number, 1e-9, 1e9, "rates from 1e-9 to 1e9")
    num_requests: int = option(400, whole, 1, high=MOST_REQUESTS)
    max_batch: int = option(256, whole, 1, high=MOST_ROWS)
    replicas: int = option(1, whole, 1, high=MOST_TEXTS)
    arrivals: str | None = option(None, text, "name a file of arrival times, or null for a Poisson process", null=True)
    seconds: float = option(60.0, number, ABOVE_ZERO, 1e6, "seconds above 0 and up to 1e6")
    rows: tuple[int, ...] = option(None, each, whole, 1, high=MOST_NODES + 1)
    contexts: tuple[int, ...] = option(None, each, whole, 0, high=MOST_ROWS)
    experts: int = option(8, whole, 2, high=1024)
    experts_per_token: int = option(2, whole, 1)
    out: str = option("sim_report", text, "name a folder or a file")

    def __post_init__(self) -> None:
        self.devices = self.devices or tuple(preset_names())
        self.methods = self.methods or tuple(m for m in METHODS if (CONF_DIR / "method" / f"{m}.yaml").is_file())
        self.acceptances = self.acceptances or (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
        self.draft_lengths = self.draft_lengths or (1, 2, 4, 6, 8, 12)
        self.draft_shares = self.draft_shares or (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.6)
        self.requests_per_second = self.requests_per_second or (0.5, 1, 2, 4, 8, 16, 32, 64)
        self.rows = self.rows or tuple(range(1, 18))  # every one: kernels have steps between
        self.contexts = self.contexts or (32, 128, 256, 512)

    @property
    def acceptance_said(self) -> str:
        return ", then ".join([self.acceptance, *map(str, self.stage_acceptance)])


def _read(written: str) -> Any:
    """A number, true, false or null; else the text itself, which its checker refuses."""
    for read in (int, float):
        with contextlib.suppress(ValueError):
            return read(written)
    return {"null": None, "true": True, "false": False}.get(written.strip().lower(), written)


def refuse_too_many(options: SimConfig) -> None:
    """Raises ConfigError for options that are possible each by itself, and too much together."""
    tokens, requests = options.samples * options.tokens, options.num_requests * options.replicas
    if tokens > MOST_TOKENS:
        remedy = f"with tokens={options.tokens} that is {tokens:,} tokens of text: {MOST_TOKENS:,} at most"
        raise ConfigError("samples", options.samples, remedy)
    if requests > MOST_REQUESTS:
        remedy = f"with num_requests={options.num_requests} that is {requests:,} requests: {MOST_REQUESTS:,} at most"
        raise ConfigError("replicas", options.replicas, remedy)


def parse(arguments: Sequence[str]) -> tuple[SimConfig, list[str]]:
    """Own options from `key=value`, and what is left for a run's configuration.

    Raises ConfigError for a value out of range, ValueError for an option that neither has.
    """
    known = {part.name: str(part.type) for part in fields(SimConfig)}
    of_a_run = {part.name for part in fields(RunConfig)}
    own: dict[str, Any] = {}
    rest = []
    for argument in arguments:
        key, equals, written = argument.partition("=")
        if not equals or key not in known:
            if re.split(r"[.@]", key.lstrip("+~"))[0] not in of_a_run:
                raise ValueError(unknown(key, written, [*known, "pair", "method.<option>", "runs_dir"]))
            rest.append(argument)
            continue
        if known[key].startswith("tuple"):
            own[key] = tuple(v if "str" in known[key] else _read(v) for v in written.split(",") if v)
        else:
            own[key] = written if "str" in known[key] and written != "null" else _read(written)
    made = SimConfig(**own)
    check_ranges(made)
    refuse_too_many(made)
    return made, rest

"""Where the memory goes: a footprint predicted from the models' shapes beside what was measured, and the process's own size."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench.measure.records.jsonfile import or_why

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "float8_e4m3fn": 1, "float8_e5m2": 1}


def dtype_bytes(dtype: str) -> int:
    """Bytes of one number. Raises ValueError for an unknown dtype."""
    name = dtype.removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise ValueError(f"dtype={dtype!r}: size unknown; known are {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[name]


@dataclass(frozen=True)
class Dimensions:
    """What a model's memory follows from. `config` below is a Hugging Face configuration as a dictionary."""

    num_parameters: int
    dtype: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int

    @classmethod
    def of(cls, config: Mapping[str, Any], num_parameters: int, dtype: str) -> Dimensions:
        """Raises ValueError where the cache's shape does not follow from these keys (latent attention, recurrent state)."""
        config = config.get("text_config") or config
        unusual = [key for key in ("kv_lora_rank", "linear_num_value_heads", "mamba_d_state", "state_size") if config.get(key)]
        if unusual:
            raise ValueError(
                f"config.{unusual[0]}: this cache's size does not follow from heads and layers; measure it instead"
            )
        heads = config.get("num_attention_heads") or config["n_head"]
        hidden = config.get("hidden_size") or config["n_embd"]
        return cls(
            num_parameters=num_parameters,
            dtype=dtype,
            num_layers=config.get("num_hidden_layers") or config["n_layer"],
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            vocab_size=config["vocab_size"],
        )

    @property
    def weight_bytes(self) -> int:
        return self.num_parameters * dtype_bytes(self.dtype)

    def kv_bytes(self, num_tokens: int) -> int:
        """Keys and values of one sequence: 2 x layers x heads x head_dim numbers a token."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * num_tokens * dtype_bytes(self.dtype)

    def logit_bytes(self, num_rows: int) -> int:
        """Logits of one forward at the model's dtype plus their float32 copy, on which the rules work."""
        own = dtype_bytes(self.dtype)
        return num_rows * self.vocab_size * (own if own == 4 else own + 4)


def predict(target: Dimensions, draft: Dimensions | None, *, max_tokens: int, num_rows: int) -> dict[str, int]:
    """Bytes by part. max_tokens: capacity of a cache (prompt + output); num_rows: most rows of a target forward in decoding."""
    parts = {
        "target_weights": target.weight_bytes,
        "target_kv": target.kv_bytes(max_tokens),
        "target_logits": target.logit_bytes(num_rows),
    }
    if draft is not None:
        parts |= {
            "draft_weights": draft.weight_bytes,
            "draft_kv": draft.kv_bytes(max_tokens),
            "draft_logits": draft.logit_bytes(1),
        }
    return parts


def footprint_table(
    predicted: Mapping[str, int] | None, measured: Mapping[str, int | None], why: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Predicted and measured bytes side by side, by part, for summary.json.

    measured: what the caller could count by the same names (allocated for weights, a cache's buffers ...) and further ones such
    as `device_peak` and `process_rss`. A part that was not measured is null with the reason in `why`, else "not measured".
    """
    reasons, guesses = why or {}, predicted or {}
    rows = []
    for part in dict.fromkeys([*guesses, *measured]):
        predicted_bytes = or_why("predicted_bytes", guesses.get(part), reasons.get("predicted", "no prediction for this part"))
        measured_bytes = or_why("measured_bytes", measured.get(part), reasons.get(part, "not measured"))
        rows.append({"part": part, **predicted_bytes, **measured_bytes})
    return {"rows": rows, "predicted_total_bytes": sum(guesses.values()) if guesses else None}


def _status_bytes(field: str, pid: int | None) -> int | None:
    try:
        text = Path(f"/proc/{pid or 'self'}/status").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def process_rss_bytes(pid: int | None = None) -> int | None:
    """Resident size of a process now (this one by default); None where the system does not tell."""
    return _status_bytes("VmRSS", pid)


def process_peak_rss_bytes(pid: int | None = None) -> int | None:
    """Largest resident size of a process so far; None where the system does not tell."""
    peak = _status_bytes("VmHWM", pid)
    if peak is None and pid is None:
        try:
            import resource
        except ImportError:  # no POSIX
            return None
        unit = 1 if sys.platform == "darwin" else 1024  # kilobytes everywhere but on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak

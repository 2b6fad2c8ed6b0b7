"""Frozen records of what happened, ints and floats only, and their format version.

A `Round` is one target forward during decoding. Prefill is not a round: it yields the first token. The identities that hold
for every sample: the sum of `num_emitted` over rounds + 1 equals the output length (0 rounds: length 1 or less), and
`num_accepted <= num_drafted` and `num_accepted <= num_emitted <= num_accepted + 1` in every round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

FORMAT_VERSION = 2
SIMULATED = "simulated"  # run.json's `source` where nothing was measured (`specbench.sim`)

PARTS = ("draft", "verify", "wait", "learn")  # <part>_seconds of a round; what they leave of its wall time is "other"

SampleKey = tuple[str, int, int, str]  # sample_id, turn, repeat, arm


@dataclass(frozen=True, slots=True)
class Round:
    """One target forward while decoding (design: "canonical round").

    Times are seconds since the sample's decode clock started (the end of prefill). The seconds of `PARTS` are spent by the
    process that owns the target; they do not overlap. The last four columns came with format version 2.
    """

    t_start: float
    t_end: float
    num_drafted: int  # draft tokens shown to the target
    num_accepted: int  # draft tokens kept: accepted by the rule, up to the EOS and length cut
    num_emitted: int  # tokens kept after the EOS and length cut
    num_discarded: int = 0  # drafted tokens thrown away because of this round's verdict
    num_target_rows: int = 1  # rows in the target's forward (pending + nodes + riders)
    num_draft_forwards: int = 0
    draft_depth: int = 0  # deepest drafted node; equals num_drafted for a chain
    rollback_depth: int = 0  # tokens by which the draft's sequence was cut back; 0 = no rollback
    stale: bool = False  # a published draft could not be used because the target had left its prefix
    epoch: int = 0  # how many rollbacks came before this round (asynchronous methods)
    phase: str = ""  # a method's own phase name, e.g. "pre" and "post" for PEARL, "hit" and "miss" for SSD
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    wait_seconds: float = 0.0
    learn_seconds: float = 0.0  # spent by an adapter that changes the draft between rounds
    num_rider_rows: int = 0  # rows of the forward that were answered and never committed
    target_share: float = 1.0  # layers of the target that this round's forward ran, of all
    draft_version: int = 0  # how often the draft's weights had been changed when this round was drafted


ROUND_FIELDS = tuple(Round.__dataclass_fields__)
LATER_FIELDS: dict[str, Any] = {  # columns that a folder of format version 1 lacks, and what it means there
    name: Round.__dataclass_fields__[name].default
    for name in ("learn_seconds", "num_rider_rows", "target_share", "draft_version")
}


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One sample's turn in one arm and repeat. Failed samples carry `error` and no numbers."""

    sample_id: str
    turn: int
    repeat: int
    arm: str  # "method" | "baseline"
    order: int  # running number over the whole run: shows the interleaving
    category: str | None
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    finish_reason: str  # "eos" | "length" | "prompt_too_long" | "error"
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    num_emitted: int | None = None  # decode tokens: output length minus the prefill's token
    num_rounds: int | None = None
    memory_peak_bytes: int | None = None
    concurrent_seconds: dict[str, float] = field(default_factory=dict)  # {draft, discarded_draft, idle} of other processes
    threads: int | None = None
    started_at: float | None = None  # when decoding began, on the machine's monotonic clock
    spans: tuple[tuple[float, float, str], ...] = ()  # measure.trace: (t_start, t_end, what) of workers, on the rounds' clock
    session: int = 0  # 0, or the number of the continuation that `resume` started
    error: str | None = None
    counted: dict[str, float] = field(default_factory=dict)  # a method's own counts, unit in the name; summed over samples
    right: bool | None = None  # data.grade: whether the last turn's answer is the set's; None: not graded

    @property
    def key(self) -> SampleKey:
        return (self.sample_id, self.turn, self.repeat, self.arm)


_JSON: dict[str, set[type]] = {"str": {str}, "int": {int}, "float": {int, float}, "bool": {bool}, "dict[str, float]": {dict}}
_JSON["None"] = {type(None)}


def _types(record: type) -> dict[str, set[type]]:
    """What JSON may give for the fields of a record that are plain values."""
    parts = {part.name: str(part.type).split(" | ") for part in fields(record)}
    return {name: set[type]().union(*map(_JSON.__getitem__, own)) for name, own in parts.items() if set(own) <= _JSON.keys()}


SAMPLE_TYPES, ROUND_TYPES = _types(SampleRecord), _types(Round)  # by field


def is_column(name: str, values: object) -> bool:
    """Whether these are what rounds have in the field of this name."""
    return isinstance(values, list) and set(map(type, values)) <= ROUND_TYPES[name]


def cut_accepted(columns: Mapping[str, list[Any]]) -> None:
    """Folders from before the cut say how many drafts the rule took in a sample's last round, also those behind its end."""
    for i, (accepted, emitted) in enumerate(zip(columns["num_accepted"], columns["num_emitted"], strict=True)):
        if accepted > emitted:
            columns["num_accepted"][i] = emitted
            for name in ("num_discarded", "rollback_depth"):
                columns[name][i] += accepted - emitted

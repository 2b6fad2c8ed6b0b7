"""A run as a timeline: Chrome trace JSON, which opens in Perfetto (ui.perfetto.dev) and in chrome://tracing.

One process per arm, one track per role: slices on a track never overlap (the format does not allow it). Within a round the
target's process drafts, waits, then verifies: the records hold these three durations, not their order, and every method's
step has this one. What a draft worker did at the same time comes as spans of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from specbench.measure.metrics import Rounds, SampleKey
from specbench.measure.records.events import Round, SampleRecord
from specbench.measure.records.store import rounds_from_columns

Span = tuple[float, float, str]
"""(t_start, t_end, name) of another process, seconds on the rounds' clock; name: draft, discarded_draft, idle, ..."""

_PIDS = {"method": 1, "baseline": 2}
_POWER_PID = 3
_SAMPLE, _TARGET, _DRAFT, _WORKER = 1, 2, 3, 4  # tracks, in the order in which they are shown
_GAP_SECONDS = 0.001  # between samples that are laid one after another
_COLOURS = {
    "draft": "thread_state_running",
    "discarded_draft": "terrible",
    "verify": "thread_state_runnable",
    "prefill": "thread_state_iowait",
    "wait": "grey",
    "idle": "grey",
}


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _slice(pid: int, tid: int, name: str, start: float, end: float, args: Mapping[str, Any] | None = None) -> dict[str, Any]:
    event = {"ph": "X", "cat": name, "name": name, "pid": pid, "tid": tid, "ts": _us(start), "dur": _us(end - start)}
    if name in _COLOURS:
        event["cname"] = _COLOURS[name]
    return event if args is None else {**event, "args": dict(args)}


def _meta(kind: str, pid: int, tid: int, name: str) -> list[dict[str, Any]]:
    named = {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
    if kind == "process_name":
        return [named]
    return [named, {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}]


def build_trace(
    samples: Sequence[SampleRecord],
    rounds: Rounds,
    power: Iterable[Mapping[str, Any]] = (),
    *,
    spans: Mapping[SampleKey, Sequence[Span]] | None = None,
    starts: Mapping[SampleKey, float] | None = None,
    devices: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The trace as a dictionary for `RunStore.write_trace`.

    starts: clock seconds at which each sample's decoding began; without them the samples are laid one after another in running
    order, and the power trace (from a pass of its own) has its own zero. spans: what a draft worker did, by sample. devices:
    names by role, e.g. {"target": "cuda:0", "draft": "cuda:1"}, for the tracks' titles.
    """
    titles = devices or {}
    events: list[dict[str, Any]] = []
    used: set[tuple[int, int]] = set()
    origin = 0.0 if not starts else min(starts[r.key] - (r.prefill_seconds or 0.0) for r in samples if r.key in starts)
    cursor = 0.0
    for record in sorted(samples, key=lambda r: r.order):
        if record.error is not None or record.decode_seconds is None:
            continue
        prefill = record.prefill_seconds or 0.0
        begin = starts[record.key] - origin if starts and record.key in starts else cursor + prefill
        cursor = begin + record.decode_seconds + _GAP_SECONDS
        value = rounds.get(record.key, ())
        listed = rounds_from_columns(value) if isinstance(value, Mapping) else value
        worker = (spans or {}).get(record.key, ())
        made = _sample_events(record, listed, begin, prefill, marks=_WORKER if worker else _DRAFT)
        made += _worker_events(record, worker, begin)
        used |= {(event["pid"], event["tid"]) for event in made if "tid" in event}
        events += made
    power_events = _power_events(power, origin if starts else None)
    return {
        "traceEvents": _titles(used, bool(power_events), titles) + events + power_events,
        "displayTimeUnit": "ms",
        "otherData": {"layout": "as measured" if starts else "samples one after another in running order"},
    }


def _sample_events(
    record: SampleRecord, rounds: Sequence[Round], begin: float, prefill: float, marks: int
) -> list[dict[str, Any]]:
    """Slices of the target's process; rollback marks go to the track `marks`, where the draft was made."""
    pid = _PIDS[record.arm]
    end = begin + (record.decode_seconds or 0.0)
    name = f"{record.sample_id} turn {record.turn} repeat {record.repeat}"
    facts = {"output_tokens": len(record.output_ids), "finish_reason": record.finish_reason, "rounds": len(rounds)}
    events = [_slice(pid, _SAMPLE, name, begin - prefill, end, facts)]
    if prefill > 0:
        events.append(_slice(pid, _TARGET, "prefill", begin - prefill, begin, {"prompt_tokens": len(record.prompt_ids)}))
    for number, r in enumerate(rounds):
        facts = {"round": number, "drafted": r.num_drafted, "accepted": r.num_accepted, "emitted": r.num_emitted}
        at = r.t_start
        for part, track in (("draft", _DRAFT), ("wait", _TARGET), ("verify", _TARGET), ("learn", _DRAFT)):
            until = min(at + float(getattr(r, f"{part}_seconds")), r.t_end)  # rounding must not make slices overlap
            if until > at:
                events.append(_slice(pid, track, part, begin + at, begin + until, facts))
                at = until
        if r.num_discarded or r.rollback_depth or r.stale:
            facts = {"discarded": r.num_discarded, "depth": r.rollback_depth, "stale": r.stale, "epoch": r.epoch}
            mark = "stale draft" if r.stale else "rollback"
            events.append(
                {"ph": "i", "s": "t", "name": mark, "pid": pid, "tid": marks, "ts": _us(begin + r.t_end), "args": facts}
            )
        accepted = {"ph": "C", "name": "accepted draft tokens", "pid": pid, "ts": _us(begin + r.t_end)}
        events.append({**accepted, "args": {"tokens": r.num_accepted}})
    return events


def _worker_events(record: SampleRecord, spans: Sequence[Span], begin: float) -> list[dict[str, Any]]:
    """A draft worker's own lane. Spans are sorted and clipped against each other."""
    events = []
    last = float("-inf")
    for start, end, name in sorted(spans):
        start = max(start, last)
        if end > start:
            events.append(_slice(_PIDS[record.arm], _WORKER, name, begin + start, begin + end))
            last = end
    return events


def _power_events(power: Iterable[Mapping[str, Any]], origin: float | None) -> list[dict[str, Any]]:
    rows = list(power)
    if not rows:
        return []
    zero = rows[0]["time_seconds"] if origin is None else origin
    events = []
    for row in rows:
        for field, unit in (("watts", "W"), ("temperature_celsius", "C"), ("utilisation", "share")):
            if row.get(field) is not None:
                name = f"{field.split('_')[0]} {row.get('role', '')} {row['device']}".replace("  ", " ")
                stamp = _us(row["time_seconds"] - zero)
                events.append({"ph": "C", "name": name, "pid": _POWER_PID, "ts": stamp, "args": {unit: row[field]}})
    return events


def _titles(used: set[tuple[int, int]], power: bool, devices: Mapping[str, str]) -> list[dict[str, Any]]:
    def named(role: str) -> str:
        return f"{role} ({devices[role]})" if role in devices else role

    tracks = {_SAMPLE: "samples", _TARGET: named("target"), _DRAFT: named("draft"), _WORKER: f"{named('draft')}, own process"}
    out: list[dict[str, Any]] = []
    for arm, pid in _PIDS.items():
        own = sorted(tid for p, tid in used if p == pid)
        if own:
            out += _meta("process_name", pid, 0, arm)
            for tid in own:
                out += _meta("thread_name", pid, tid, tracks[tid])
    return out + (_meta("process_name", _POWER_PID, 0, "power and temperature") if power else [])

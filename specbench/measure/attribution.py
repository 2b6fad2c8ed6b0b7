"""What a token cost and what for: the energy pass's blocks as figures for the summary, and joules attributed to parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specbench.measure.records.jsonfile import or_why
from specbench.measure.sensors.energy import SOURCES, EnergyReading
from specbench.measure.sensors.energy_pass import MIN_BLOCK_SECONDS, Block

MAX_SOURCE_GAP = 0.10  # counter and integrated power may differ by this share before a warning
PARTS = ("draft", "discarded_draft", "verify", "prefill", "wait")

RULE_WITH_IDLE = (
    "Each device's joules are split by its own time. Its measured idle power runs through the whole block and is charged to "
    "every part, waiting included, by seconds; what it drew above that is charged to the parts in which it computed, by "
    "seconds. Discarded drafts are the drafting time of tokens that were thrown away."
)
RULE_WITHOUT_IDLE = (
    "Each device's joules are split by its own time: every part, waiting included, is charged by its seconds, because idle "
    "power was not measured. Waiting is therefore overstated. Discarded drafts are the drafting time of tokens that were "
    "thrown away."
)


def parts_of_work(
    seconds: Mapping[str, float], concurrent: Mapping[str, float], prefill_seconds: float, discarded_share: float
) -> dict[str, dict[str, float]]:
    """Active seconds by role for `energy_pass.Work`.

    seconds: {draft, verify, wait, learn, other} of the target's process; concurrent: {draft, discarded_draft, idle} of a draft
    worker, empty without one. discarded_share: discarded over drafted tokens, which splits the drafting time of a sequential
    method; a worker's own record splits its time. `other` (bookkeeping on the host) leaves the device idle, as `wait` does.
    Learning is work on the draft and counted as drafting.
    """
    assert 0 <= discarded_share <= 1, "a share"
    target = {"verify": seconds.get("verify", 0.0), "prefill": prefill_seconds}
    own_draft = seconds.get("draft", 0.0) + seconds.get("learn", 0.0)
    draft = {"draft": own_draft * (1 - discarded_share), "discarded_draft": own_draft * discarded_share}
    for part in draft:
        draft[part] += concurrent.get(part, 0.0)
    return {"target": target, "draft": draft}


def attribute(joules: float, seconds: float, active: Mapping[str, float], idle_watts: float | None) -> dict[str, float]:
    """One device's joules by part; they sum to `joules`. `active`: seconds by part; the rest of `seconds` is waiting.

    Parts that overlap on a shared device may take longer together than the block: then nothing is waiting.
    """
    busy = sum(active.values())
    spans = {**{part: active.get(part, 0.0) for part in PARTS}, "wait": max(0.0, seconds - busy)}
    whole = sum(spans.values())
    if whole <= 0:
        return {**dict.fromkeys(PARTS, 0.0), "wait": joules}
    if idle_watts is None or busy <= 0:
        return {part: joules * span / whole for part, span in spans.items()}
    floor = min(joules, idle_watts * seconds)
    return {
        part: floor * span / whole + ((joules - floor) * span / busy if part != "wait" else 0.0) for part, span in spans.items()
    }


def _parts(blocks: Sequence[Block], idle: Mapping[str, float] | None) -> dict[str, float] | None:
    """Joules by part over the counted devices of one arm; None if a device has no reading or no time split was given."""
    total = dict.fromkeys(PARTS, 0.0)
    for block in blocks:
        counted = [device for device in block.reading.devices if device.counted]
        if not counted or not block.work.active_seconds or any(device.joules is None for device in counted):
            return None
        roles = {device.role for device in counted}
        for device in counted:
            active: dict[str, float] = {}
            for role, parts in block.work.active_seconds.items():
                # A role without a device of its own works on the target's, or on the only one there is.
                if role == device.role or (role not in roles and (device.role == "target" or len(counted) == 1)):
                    for part, span in parts.items():
                        active[part] = active.get(part, 0.0) + span
            watts = None if idle is None else idle.get(device.device)
            for part, share in attribute(device.joules or 0.0, block.reading.seconds, active, watts).items():
                total[part] += share
    return total


def _arm(blocks: Sequence[Block], idle: Mapping[str, float] | None) -> dict[str, Any]:
    """Totals of one arm: joules, tokens, gross and net joules per token, by role and by part."""
    readings = [block.reading for block in blocks]
    tokens = sum(block.work.num_output_tokens for block in blocks)
    seconds = sum(reading.seconds for reading in readings)
    missing = [reading.why or "no reading" for reading in readings if reading.joules is None]
    out: dict[str, Any] = {"num_output_tokens": tokens, "seconds": seconds, "num_blocks": len(blocks)}
    if missing or not tokens:
        why = missing[0] if missing else "no tokens in the energy pass"
        return out | or_why("joules", None, why) | or_why("joules_per_token", None, why)
    joules = sum(reading.joules or 0.0 for reading in readings)
    roles: dict[str, float] = {}
    for reading in readings:
        for device in reading.devices:
            if device.joules is not None:
                roles[device.role] = roles.get(device.role, 0.0) + device.joules
    out |= {"joules": joules, "joules_per_token": joules / tokens, "watts": joules / seconds, "joules_by_role": roles}
    out["joules_per_token_by_role"] = {role: value / tokens for role, value in roles.items()}
    out["joules_per_token_by_block"] = [
        (block.reading.joules or 0.0) / block.work.num_output_tokens for block in blocks if block.work.num_output_tokens
    ]
    floor = _idle_joules(readings, idle)
    net = None if floor is None else (joules - floor) / tokens
    out |= or_why("net_joules_per_token", net, "idle power was not measured on every device")
    out |= or_why("joules_by_part", _parts(blocks, idle), "no time split was recorded in the energy pass")
    return out


def _idle_joules(readings: Sequence[EnergyReading], idle: Mapping[str, float] | None) -> float | None:
    counted = [device for reading in readings for device in reading.devices if device.counted]
    if idle is None or any(device.device not in idle for device in counted):
        return None
    return sum(idle[device.device] * device.seconds for device in counted)


def summarise(blocks: Sequence[Block], idle: Mapping[str, float] | None = None) -> dict[str, Any]:
    """The `energy` entry of summary.json. idle: idle watts by device (`energy_pass.idle_watts`), None if not measured."""
    source = max((block.reading.source for block in blocks), key=SOURCES.index, default="none")
    out: dict[str, Any] = {"source": source}
    for arm, prefix in (("method", ""), ("baseline", "baseline_")):
        own = _arm([block for block in blocks if block.arm == arm], idle)
        out |= {prefix + key: value for key, value in own.items()}
    out["attribution_rule"] = RULE_WITH_IDLE if idle else RULE_WITHOUT_IDLE
    out["tokens_counted"] = "all output tokens, the first one of each prompt included; prefill is inside the joules"
    out |= or_why("idle_watts", dict(idle) if idle else None, "idle power was not measured")
    devices = {d.device: {"device": d.device, "role": d.role, "counted": d.counted} for b in blocks for d in b.reading.devices}
    out["devices"] = list(devices.values())
    out["warnings"] = _warnings(blocks)
    return out


def _warnings(blocks: Sequence[Block]) -> list[str]:
    found: list[str] = []
    read = [block.reading.seconds for block in blocks if block.reading.joules is not None]
    short = [seconds for seconds in read if seconds < MIN_BLOCK_SECONDS]
    if short:
        found.append(f"energy blocks as short as {min(short):.1f} s: below {MIN_BLOCK_SECONDS:.0f} s the counters' tick shows")
    for block in blocks:
        for device in block.reading.devices:
            if device.source == "nvml_counter" and device.joules and device.joules_from_power:
                gap = device.joules_from_power / device.joules - 1
                if abs(gap) > MAX_SOURCE_GAP:
                    where = f"integrated power differs from the energy counter by {gap:+.0%} ({block.arm})"
                    found.append(f"{device.device}: {where}")
    return list(dict.fromkeys(found))

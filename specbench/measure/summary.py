"""summary.json: every headline figure of one run, derived from the records alone.

A figure that does not exist is null and has a `<key>_why` beside it; it is never 0. All totals are over every repeat of the
method's arm; rates and speed-ups use medians over repeats (`stats`).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specbench.measure import lossless as verdicts
from specbench.measure import metrics, pairing, stats
from specbench.measure import warnings as levels
from specbench.measure.metrics import Rounds, RoundTable
from specbench.measure.records import store
from specbench.measure.records.events import FORMAT_VERSION, SampleRecord
from specbench.measure.records.jsonfile import or_why

NAMED = 10  # failed samples in a warning


def build_summary(
    run: Mapping[str, Any],
    samples: Sequence[SampleRecord],
    rounds: Rounds,
    *,
    lossless: Mapping[str, Any] | None = None,
    energy: Mapping[str, Any] | None = None,
    memory: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    noise_floor: Sequence[float] | None = None,
    resamples: int = stats.RESAMPLES,
) -> dict[str, Any]:
    """The summary of one run; also of a run that was cut off, from what it left behind.

    run: run.json (used: status, method, baseline, pair, data, devices, num_devices, config, run_folder, warnings).
    rounds: by sample key, `Round`s or columns. lossless: `lossless.LosslessReport.as_dict()`. energy:
    `attribution.summarise`'s dictionary, None when not measured. memory: `memory.footprint_table`'s dictionary.
    noise_floor: the interval of an A/A run under the same conditions (`noise.find_noise_floor`). The bootstrap's seed
    is the configuration's hash, so that a rebuilt summary draws the same resamples. Raises metrics.IdentityError if records
    contradict.
    """
    finished = [r for r in samples if r.error is None and r.decode_seconds is not None]
    keys = {r.key for r in finished}
    table = RoundTable.of({key: value for key, value in rounds.items() if key in keys})  # a cut-off sample leaves rounds alone
    metrics.check_identities(samples, table)
    own_arm = "method" if any(r.arm == "method" for r in samples) else "baseline"
    own = [r for r in finished if r.arm == own_arm]
    mine = table.arm(own_arm)
    config = run.get("config", {})
    notes = [*run.get("warnings", []), *warnings, *(energy or {}).get("warnings", [])]

    summary: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "run_folder": run.get("run_folder"),
        "status": run.get("status"),
        **({"source": run["source"]} if "source" in run else {}),  # of a run that was not measured
        "method": run.get("method", config.get("method_name")),
        "baseline": run.get("baseline", config.get("baseline_name")),
        "mode": config.get("measure", {}).get("mode", "paired"),
        "pair": dict(run.get("pair") or {role: config.get("pair", {}).get(role) for role in ("target", "draft")}),
        "data": _data(run, config, samples),
        "backend": _backend(run),
        "device": run.get("device"),
        "repeats": len({r.repeat for r in own}),
    }
    summary |= _decoding(own, mine)
    summary |= _speed(run, samples, own_arm, notes, noise_floor, resamples)
    summary |= _rounds(mine)
    summary["seconds"] = metrics.seconds(mine, own)
    others = [r for r in finished if r.arm != own_arm]
    other_seconds = metrics.seconds(table.arm("baseline"), others) if others else None
    summary |= or_why("baseline_seconds", other_seconds, "this run has one arm")
    concurrent = metrics.concurrent_seconds(own)
    summary |= or_why("concurrent_seconds", concurrent or None, "the method has no other process")
    summary |= or_why("counted", metrics.counted(own) or None, "the method counts nothing beside its rounds")
    nothing = {"claim": None, "verdict": "not_compared", "identical": 0, "compared": 0, "first_divergence": None}
    summary["lossless"] = dict(lossless) if lossless is not None else {**nothing, "verdict_why": "no comparison was made"}
    why = "no energy pass was run"
    unmeasured = {"source": "none", **or_why("joules_per_token", None, why), **or_why("baseline_joules_per_token", None, why)}
    summary["energy"] = dict(energy) if energy is not None else unmeasured
    summary |= _quality(own, others)
    summary |= _memory(own, others)
    if memory is not None:
        summary["memory"] = dict(memory)
    summary |= _left_out(samples, notes)
    notes += _of_verdict(summary["lossless"])
    summary["warnings"] = levels.in_order(notes)
    summary["warning_levels"] = [levels.level_of(note) for note in summary["warnings"]]
    return summary


def _of_verdict(lossless: Mapping[str, Any]) -> list[str]:
    """Where the output is not the target's, no speed-up says that the method is faster."""
    if lossless.get("claim") == "lossy":
        return ["the method is lossy: its text is its own, and its speed-up is ranked with no other"]
    if lossless["verdict"] != verdicts.DIFFERENT:
        return []
    other, claim = lossless["compared"] - lossless["identical"], lossless["claim"]
    return [f"outputs differ from the baseline's in {other} of {lossless['compared']} cases, although the claim is {claim}"]


def rebuild(folder: str | Path) -> dict[str, Any]:
    """The summary of a finished or cut-off run from its files.

    What needed the models or the machine (the gaps behind the lossless verdict, energy, memory) is taken from the summary that
    the run wrote, if it wrote one; else ids are compared without gaps, so that a difference counts as one.
    """
    from specbench.measure.lossless import compare

    run = {**store.read_run(folder), "run_folder": str(folder)}
    samples = store.read_samples(folder)
    old = store.read_summary(folder) if (Path(folder) / store.SUMMARY_FILE).exists() else {}
    return build_summary(
        run,
        samples,
        store.read_rounds(folder),
        lossless=old.get("lossless") or compare(samples, claim="not recorded").as_dict(),
        energy=old.get("energy"),
        memory=old.get("memory"),
        warnings=old.get("warnings", ()),
    )


# ---------------------------------------------------------------------------------------------------- parts
def _backend(run: Mapping[str, Any]) -> str:
    """What computed the forwards of both arms; run.json names it where it was not transformers' own."""
    target = (run.get("pair") or {}).get("target")
    return str(target.get("backend", "eager")) if isinstance(target, Mapping) else "eager"


def _data(run: Mapping[str, Any], config: Mapping[str, Any], samples: Sequence[SampleRecord]) -> dict[str, Any]:
    chosen = config.get("data", {})
    base = {"name": run.get("data_name", chosen.get("name")), "source": chosen.get("source")}
    facts = {key: value for key, value in (run.get("data") or {}).items() if key != "sample_ids"}
    return {**base, **facts, "num_samples": len({r.sample_id for r in samples})}


def _decoding(own: Sequence[SampleRecord], table: RoundTable) -> dict[str, Any]:
    prefill = [r.prefill_seconds for r in own if r.prefill_seconds is not None]
    return {
        "num_rounds": len(table),
        "decode_tokens": sum(r.num_emitted or 0 for r in own),
        "decode_seconds": sum(r.decode_seconds or 0.0 for r in own),
        **or_why("prefill_seconds_median", float(np.median(prefill)) if prefill else None, "no sample was finished"),
        "finish_reasons": {reason: sum(r.finish_reason == reason for r in own) for reason in ("eos", "length")},
    }


def _rate(times: pairing.ArmTimes) -> float | None:
    """Decode tokens per second from totals over prompts of medians over repeats."""
    tokens, seconds = times.decode()
    return float(tokens.sum() / seconds.sum()) if len(tokens) else None


def _speed(
    run: Mapping[str, Any],
    samples: Sequence[SampleRecord],
    own_arm: str,
    notes: list[str],
    noise_floor: Sequence[float] | None,
    resamples: int,
) -> dict[str, Any]:
    """Rates of both arms on the paired prompts and the speed-up; adds the statistics' warnings to `notes`."""
    pairs = pairing.pair_samples(samples)
    devices = run.get("num_devices")
    if not len(pairs):
        same = run.get("method") == run.get("baseline") and len({r.arm for r in samples}) < 2
        nobody = "no prompt was finished by both arms with at least one decode token"
        why = "the method is the baseline itself: one arm" if same else nobody
        rate = _rate(pairing.arm_times(samples, own_arm))
        return {
            **or_why("decode_tokens_per_second", rate, "no sample was finished with a decode token"),
            **or_why(
                "decode_tokens_per_second_per_device", rate / devices if rate and devices else None, "devices not recorded"
            ),
            **or_why("baseline_decode_tokens_per_second", None, why),
            **or_why("speedup", None, why),
        }
    notes.extend(stats.warnings_for(samples, pairs))
    speedup = stats.paired_speedup(pairs, seed=zlib.crc32(run.get("config_hash", "").encode()), resamples=resamples)
    clear, reason = stats.distinguishable(speedup.ci95, noise_floor, speedup.ci95_repeats)
    rate = speedup.method_tokens / speedup.method_seconds
    values: dict[str, Any] = {**speedup.as_dict(), "distinguishable": clear}
    if reason:
        values["distinguishable_why"] = reason
    for key in ("ci95", "end_to_end_ci95", "geomean_ci95"):
        if values[key] is None:
            values[f"{key}_why"] = "one prompt has no interval over prompts"
    if values["ci95_repeats"] is None:
        values["ci95_repeats_why"] = "needs two repeats that finished every prompt"
    if noise_floor is not None:
        values["noise_floor"] = list(noise_floor)
    if not speedup.same_lengths:
        notes.append(
            f"the arms emitted different numbers of tokens ({speedup.method_tokens:.0f} and {speedup.baseline_tokens:.0f}): "
            "the speed-up compares tokens/s, not seconds for the same text"
        )
    return {
        "decode_tokens_per_second": rate,
        **or_why("decode_tokens_per_second_per_device", rate / devices if devices else None, "devices not recorded"),
        "baseline_decode_tokens_per_second": speedup.baseline_tokens / speedup.baseline_seconds,
        "speedup": values,
    }


def _rounds(table: RoundTable) -> dict[str, Any]:
    nothing, drafted = "no round was run", "nothing was drafted"
    emitted, accepted = metrics.emitted_per_round(table), metrics.accepted_per_round(table)
    run_length = metrics.accepted_run_length(table)["pooled"]
    return {
        **or_why("emitted_per_round", emitted["pooled"], nothing),
        **or_why("emitted_per_round_mean_of_sample_means", emitted["mean_of_sample_means"], nothing),
        **or_why("accepted_per_round", accepted["pooled"], nothing),
        **or_why("accepted_per_round_mean_of_sample_means", accepted["mean_of_sample_means"], nothing),
        **or_why("accepted_run_length", run_length, "no run of accepted drafts was ended by a rejection"),
        **or_why("acceptance_rate", metrics.acceptance_rate(table), drafted),
        **or_why("acceptance_rate_of_nodes", metrics.acceptance_rate_of_nodes(table), drafted),
        **or_why("acceptance_by_position", metrics.acceptance_by_position(table) or None, drafted),
        **or_why("conditional_acceptance_by_position", metrics.conditional_acceptance_by_position(table) or None, drafted),
        "num_drafted": int(table.num_drafted.sum()),
        "num_draft_forwards": int(table.num_draft_forwards.sum()),
        "rollbacks": metrics.rollbacks(table),
        "num_discarded": int(table.num_discarded.sum()),
        "stale_rounds": metrics.stale_rounds(table),
        "rollback_depths": metrics.rollback_depth_histogram(table),
        "accepted_histogram": metrics.accepted_histogram(table),
    }


def _left_out(samples: Sequence[SampleRecord], notes: list[str]) -> dict[str, int]:
    """How many samples failed or were too long in any turn, repeat or arm; failed ones are named in `notes`."""
    failed: dict[str, SampleRecord] = {}  # by sample, the first
    for record in samples:
        if record.finish_reason == "error":
            failed.setdefault(record.sample_id, record)
    too_long = {record.sample_id for record in samples if record.finish_reason == "prompt_too_long"}
    if failed:
        named, first = list(failed), next(iter(failed.values()))
        listed = ", ".join(named[:NAMED]) + (f" and {len(named) - NAMED} more" if len(named) > NAMED else "")
        where = (
            f"{len(failed)} of {len({r.sample_id for r in samples})} samples failed ({listed}), out of both arms where they did"
        )
        notes.append(f"{where}; the first in the {first.arm} arm, turn {first.turn}: {first.error}")
    return {"num_failed": len(failed), "num_prompt_too_long": len(too_long)}


def _quality(own: Sequence[SampleRecord], others: Sequence[SampleRecord]) -> dict[str, Any]:
    """Right answers of each arm, over samples and repeats; nothing where no answer was graded."""
    graded = {arm: [r.right for r in records if r.right is not None] for arm, records in (("", own), ("baseline_", others))}
    return {
        key: value
        for arm, grades in graded.items()
        if grades
        for key, value in ((f"{arm}num_graded", len(grades)), (f"{arm}num_right", sum(grades)))
    }


def _memory(own: Sequence[SampleRecord], others: Sequence[SampleRecord]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, records in (("memory_peak_bytes", own), ("baseline_memory_peak_bytes", others)):
        peaks = [r.memory_peak_bytes for r in records if r.memory_peak_bytes is not None]
        why = "not measured" if records else "this run has one arm" if own else "no sample was finished"
        values |= or_why(key, max(peaks, default=None), why)
    return values

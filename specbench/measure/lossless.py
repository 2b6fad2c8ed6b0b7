"""Was the output really the target's? A verdict from the ids of both arms, sample by sample.

Greedy decoding of one model is not unique in floating point: a forward over several rows sums in another order than a forward
over one, and where the two best logits all but tie, the argmax may differ. Such a *numerical tie* is told from a fault by the
gap at the first position where the outputs part, measured by a fresh single-sequence forward over the common prefix. Every
differing sample is listed with its gap and its judgement; nothing is hidden in an average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from specbench.measure.records.events import SampleRecord

GapOf = Callable[[SampleRecord, int, int], float | None]
"""gap_of(record, position, other) -> gap behind the record's prompt and its first `position` tokens, between its own next token
and `other`; None if it cannot be had. The record names the sample, whose noise is its own even where two share a prompt.

The gap is the best score there minus the lower of the two tokens' scores: the difference of the two best where the tokens are
the two best, and larger where one of them is not, so that a wrong token never hides behind somebody else's tie. Scores are
logits in greedy decoding, keyed scores (warped logits / T + keyed noise) in sampling.
"""

IDENTICAL, TIE, DIFFERENT, NOT_COMPARED = "identical", "numerical_tie", "different", "not_compared"

TIE_TOLERANCE = {
    "float32": (1e-4, "sums of some thousand products at logits of about 30 err by tens of units in the last place (2e-6)"),
    "float16": (0.03125, "two units in the last place of a logit between 16 and 32 (11 significant bits)"),
    "bfloat16": (0.25, "two units in the last place of a logit between 16 and 32 (8 significant bits)"),
    "float64": (1e-9, "sums of some thousand products at logits of about 30 err by tens of units in the last place (4e-15)"),
}


def tolerance_of(dtype: str) -> float:
    """Largest gap that counts as a numerical tie. dtype: as in the configuration, with or without `torch.`."""
    name = dtype.removeprefix("torch.")
    if name not in TIE_TOLERANCE:
        raise ValueError(f"dtype={dtype!r}: no tie tolerance stated; known are {', '.join(TIE_TOLERANCE)}")
    return TIE_TOLERANCE[name][0]


@dataclass(frozen=True)
class Divergence:
    """Where one sample's outputs part. `position` counts output tokens from 0; a token is None where that output has ended."""

    sample_id: str
    turn: int
    repeat: int
    position: int
    method_token: int | None
    baseline_token: int | None
    gap: float | None
    judgement: str  # numerical_tie | different
    reason: str


@dataclass(frozen=True)
class LosslessReport:
    """`identical` and `compared` count pairs (sample, turn, repeat); `not_compared` counts the rest by reason."""

    claim: str
    verdict: str
    identical: int
    compared: int
    share_identical: float | None
    tolerance: float
    tolerance_reason: str
    first_divergence: dict[str, Any] | None
    divergences: tuple[dict[str, Any], ...]
    not_compared: dict[str, int]
    baseline_repeatable: bool | None  # the baseline's own repeats agree; None with one repeat
    method_repeatable: bool | None
    verdict_why: str | None = None

    def as_dict(self) -> dict[str, Any]:
        plain = asdict(self)
        plain["divergences"] = list(self.divergences)
        if self.verdict_why is None:
            del plain["verdict_why"]
        return plain


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Index of the first position at which two id sequences differ (the shorter one's end counts); None if equal."""
    differing = (position for position, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differing, None if len(a) == len(b) else min(len(a), len(b)))


def compare(
    samples: Iterable[SampleRecord],
    *,
    claim: str,
    dtype: str = "float32",
    gap_of: GapOf | None = None,
    refuse: str | None = None,
) -> LosslessReport:
    """The verdict over all pairs of `method` and `baseline` with the same sample, turn and repeat.

    claim: what the method's rule claims (e.g. greedy-exact, sampling-exact, lossy); recorded, not judged. refuse: a reason why
    ids cannot be compared at all (other weights, independent random draws). Verdict: `different` if any pair is, else
    `numerical_tie` if any pair is, else `identical`; `not_compared` without pairs.
    """
    limit = tolerance_of(dtype)
    arms: dict[str, dict[tuple[str, int, int], SampleRecord]] = {"method": {}, "baseline": {}}
    for record in samples:
        arms[record.arm][(record.sample_id, record.turn, record.repeat)] = record
    identical = compared = 0
    divergences: list[Divergence] = []
    skipped: dict[str, int] = {}
    gaps: dict[tuple[Any, ...], float | None] = {}  # repeats ask the same question

    for key, record in arms["method"].items():
        reference = arms["baseline"].get(key)
        reason = refuse or _why_not(record, reference)
        if reason or reference is None:
            skipped[reason or ""] = skipped.get(reason or "", 0) + 1
            continue
        compared += 1
        position = first_difference(record.output_ids, reference.output_ids)
        if position is None:
            identical += 1
            continue
        ours, theirs = _at(record.output_ids, position), _at(reference.output_ids, position)
        gap: float | None = None
        if ours is not None and theirs is not None and gap_of is not None:
            question = (key[:2], record.prompt_ids, record.output_ids[: position + 1], theirs)
            if question not in gaps:
                gaps[question] = gap_of(record, position, theirs)
            gap = gaps[question]
        judgement, reason = _judge(ours, theirs, gap, limit)
        divergences.append(Divergence(*key, position, ours, theirs, gap, judgement, reason))

    if not compared:
        verdict = NOT_COMPARED
    elif any(d.judgement == DIFFERENT for d in divergences):
        verdict = DIFFERENT
    else:
        verdict = TIE if divergences else IDENTICAL
    worst = sorted(divergences, key=lambda d: d.judgement != DIFFERENT)  # the first fault, else the first tie
    why = "; ".join(skipped) or "no samples of both arms" if verdict == NOT_COMPARED else None
    return LosslessReport(
        claim=claim,
        verdict=verdict,
        identical=identical,
        compared=compared,
        share_identical=identical / compared if compared else None,
        tolerance=limit,
        tolerance_reason=TIE_TOLERANCE[dtype.removeprefix("torch.")][1],
        first_divergence=asdict(worst[0]) if worst else None,
        divergences=tuple(asdict(d) for d in divergences),
        not_compared=skipped,
        baseline_repeatable=_repeatable(arms["baseline"].values()),
        method_repeatable=_repeatable(arms["method"].values()),
        verdict_why=why,
    )


def _why_not(record: SampleRecord, reference: SampleRecord | None) -> str | None:
    if reference is None:
        return "no baseline sample with this id, turn and repeat"
    for arm in (record, reference):
        if arm.error is not None or arm.finish_reason in ("error", "prompt_too_long"):
            return f"the {arm.arm} sample has no output ({arm.finish_reason})"
    if record.prompt_ids != reference.prompt_ids:
        return "the arms had different prompts (history of their own)"
    return None


def _at(ids: Sequence[int], position: int) -> int | None:
    return ids[position] if position < len(ids) else None


def _judge(ours: int | None, theirs: int | None, gap: float | None, limit: float) -> tuple[str, str]:
    if ours is None or theirs is None:
        return DIFFERENT, f"the {'method' if ours is None else 'baseline'} ended earlier on the same tokens"
    if gap is None:
        return DIFFERENT, "no gap was measured, so a tie cannot be claimed"
    if gap <= limit:
        return TIE, f"gap {gap:.3g} <= {limit:.3g}"
    return DIFFERENT, f"gap {gap:.3g} > {limit:.3g}"


def _repeatable(records: Iterable[SampleRecord]) -> bool | None:
    """Whether all repeats of each sample and turn gave the same ids on the same prompt; None if nothing was repeated."""
    seen: dict[tuple[str, int, tuple[int, ...]], set[tuple[int, ...]]] = {}
    repeated = False
    for record in records:
        if record.error is None and record.output_ids:
            outputs = seen.setdefault((record.sample_id, record.turn, record.prompt_ids), set())
            repeated = repeated or bool(outputs)
            outputs.add(record.output_ids)
    return all(len(outputs) == 1 for outputs in seen.values()) if repeated else None

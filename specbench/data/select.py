"""Which samples are evaluated, and which prompts warm the models up: deterministic on every machine and Python version."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from specbench.config.options import ConfigError, check_ranges
from specbench.config.schema import DataConfig
from specbench.data.load import load_standin, standin_names
from specbench.data.prompts import turns_to_generate
from specbench.data.samples import Dataset, Sample


def select(dataset: Dataset, config: DataConfig) -> tuple[Sample, ...]:
    """The evaluated samples, in file order.

    `data.categories` keeps only these categories. `data.limit` below what is left draws that many: the question sets are
    sorted by category, so the first n would be a sample of one category; instead the categories give one sample each in turn,
    the largest first, of equal ones as in the file (a small draw of Spec-Bench is then of its own five tasks, and not MT-Bench
    again), each from its own order by sha256 of "<seed>:<sample_id>". A set without categories is one category.
    The draw for a smaller limit is part of the draw for a larger one. Raises ConfigError for an unknown category, an
    option outside its range, and samples that `data.history` cannot run.
    """
    check_ranges(config, "data.")
    samples = _of_categories(dataset, config.categories)
    if config.limit is not None and config.limit < len(samples):
        samples = _draw(samples, config.limit, config.seed)
    for sample in samples:
        turns_to_generate(sample, config.history)
    return samples


def warmup_samples(dataset: Dataset, evaluated: Sequence[Sample], count: int, config: DataConfig) -> tuple[Sample, ...]:
    """`count` samples outside `evaluated`: from the rest of the file (categories of the evaluated ones first, then by the
    seeded order), then from the set's stand-in, then from the other stand-ins. Raises ConfigError if all that is not enough.
    """
    used = {sample.sample_id for sample in evaluated}
    texts = {sample.turns for sample in evaluated}  # the same text may carry another id in another set
    categories = {sample.category for sample in evaluated}
    pools = [dataset.samples]
    names = standin_names()
    pools += [load_standin(name).samples for name in sorted(names, key=lambda name: (name != config.name, name))]
    chosen: list[Sample] = []
    for pool in pools:
        for sample in sorted(pool, key=lambda one: (one.category not in categories, _rank(config.seed, one), one.sample_id)):
            if len(chosen) == count:
                return tuple(chosen)
            if sample.sample_id in used or sample.turns in texts or not _runs(sample, config.history):
                continue
            chosen.append(sample)
            used.add(sample.sample_id)
            texts.add(sample.turns)
    if len(chosen) < count:
        raise ConfigError("measure.warmup", count, f"only {len(chosen)} prompts are left outside the evaluated set")
    return tuple(chosen)


def _of_categories(dataset: Dataset, wanted: Sequence[str] | None) -> tuple[Sample, ...]:
    if wanted is None:
        return dataset.samples
    known = list(dict.fromkeys(sample.category for sample in dataset.samples if sample.category is not None))
    possible = (
        f"possible for {dataset.name} are {', '.join(known)}" if known else f"{dataset.name} has no categories; leave it null"
    )
    if not wanted or not set(wanted) <= set(known):
        raise ConfigError("data.categories", list(wanted), possible)
    return tuple(sample for sample in dataset.samples if sample.category in wanted)


def _draw(samples: tuple[Sample, ...], limit: int, seed: int) -> tuple[Sample, ...]:
    queues: dict[str | None, list[Sample]] = {}
    for sample in samples:
        queues.setdefault(sample.category, []).append(sample)
    for queue in queues.values():
        queue.sort(key=lambda sample: (_rank(seed, sample), sample.sample_id))
    largest_first = sorted(queues.values(), key=len, reverse=True)
    in_turn = [queue[place] for place in range(len(largest_first[0])) for queue in largest_first if place < len(queue)]
    drawn = {sample.sample_id for sample in in_turn[:limit]}
    return tuple(sample for sample in samples if sample.sample_id in drawn)


def _rank(seed: int, sample: Sample) -> bytes:
    return hashlib.sha256(f"{seed}:{sample.sample_id}".encode()).digest()


def _runs(sample: Sample, history: str) -> bool:
    try:
        turns_to_generate(sample, history)
    except ConfigError:
        return False
    return True

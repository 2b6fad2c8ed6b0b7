"""The distribution of a method's output against the exact one: many seeds, and a chi-square test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from specbench.check.bench import SAMPLED, Bench
from specbench.check.result import FAIL, Result
from specbench.engine.sampling import SamplingLaw
from specbench.engine.session import Session

LENGTH = 3  # tokens whose joint law is compared: 3^3 sequences under the checks' law
MAX_NEW_TOKENS = 5  # decoded ones: the drafts behind LENGTH are part of the schedule
NUM_SEEDS = 1000
MIN_EXPECTED = 5.0  # sequences expected less often are counted together
P_VALUE = 1e-5  # below it the law is judged wrong: a right method is accused once in 100,000 checks

Sequences = dict[tuple[int, ...], float]


def exact_law(bench: Bench, law: SamplingLaw, prompt: int, length: int = LENGTH) -> Sequences:
    """Probability of every possible beginning of the output, from the target itself."""
    session, ids = Session(bench.target), bench.prompts[prompt]
    session.start(len(ids) + length)
    found: Sequences = {}

    def walk(prefix: tuple[int, ...], mass: float) -> None:
        if len(prefix) == length:
            found[prefix] = mass
            return
        session.rollback(0 if not prefix else len(ids) + len(prefix) - 1)
        row = law.probabilities(session.feed(ids if not prefix else prefix[-1:], last_only=True)[0].double())
        for token in row.nonzero().flatten().tolist():
            walk((*prefix, token), mass * float(row[token]))

    walk((), 1.0)
    return found


def chi_square(counts: Mapping[tuple[int, ...], int], law: Sequences) -> tuple[float, int, float]:
    """(statistic, degrees of freedom, p-value) of observed counts; rare sequences are pooled, impossible ones decide alone."""
    from scipy.stats import chi2

    total = sum(counts.values())
    if any(sequence not in law for sequence in counts):
        return float("inf"), 1, 0.0
    cells: list[tuple[float, float]] = []
    rest_observed = rest_expected = 0.0
    for sequence, probability in law.items():
        observed, expected = float(counts.get(sequence, 0)), total * probability
        if expected < MIN_EXPECTED:
            rest_observed, rest_expected = rest_observed + observed, rest_expected + expected
        else:
            cells.append((observed, expected))
    if rest_expected >= MIN_EXPECTED or not cells:
        cells.append((rest_observed, rest_expected))
    elif rest_expected:
        last_observed, last_expected = cells.pop()
        cells.append((last_observed + rest_observed, last_expected + rest_expected))
    statistic = sum((observed - expected) ** 2 / expected for observed, expected in cells)
    freedom = max(1, len(cells) - 1)
    return statistic, freedom, float(chi2.sf(statistic, freedom))


def sampled_law(bench: Bench, num_seeds: int | None = None) -> Result:
    """The first tokens of the output over many seeds have the target's own law."""
    method, num_seeds = bench.method(SAMPLED), num_seeds or NUM_SEEDS
    counts = Counter(
        tuple(bench.decode(SAMPLED, bench.request(1, seed, MAX_NEW_TOKENS, eos_ids=())).output_ids[:LENGTH])
        for seed in range(num_seeds)
    )
    law = exact_law(bench, SAMPLED, prompt=1)
    statistic, freedom, p_value = chi_square(counts, law)
    distance = 0.5 * sum(abs(counts.get(s, 0) / num_seeds - law.get(s, 0.0)) for s in law.keys() | counts.keys())
    test = f"chi-square {statistic:.1f} on {freedom} d.o.f., p = {p_value:.2g}"
    seen = f"{num_seeds} seeds: {test}, total variation {distance:.3f}"
    if p_value >= P_VALUE:
        return Result.of(None, seen)
    labelled = "; labelled lossy, and it is" if method.claim(SAMPLED) == "lossy" else f"; claims {method.claim(SAMPLED)}"
    return Result(FAIL, seen + labelled)

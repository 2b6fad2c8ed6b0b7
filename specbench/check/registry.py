"""All checks by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from specbench.check.bench import Bench
from specbench.check.conduct import closing, declared_needs, label, wrong_options
from specbench.check.identity import eos_anywhere, fresh_state, greedy_identity, length_cut, same_seed, sampled_identity
from specbench.check.law import sampled_law
from specbench.check.ranks import drafted_ranks
from specbench.check.result import FAIL, Result
from specbench.check.state import caches

Check = Callable[[Bench], Result]

# On the configured pair these run too; on a method's own pair all of them do.
FIRST_CHECKS: dict[str, Check] = {"greedy identity": greedy_identity, "sampled identity": sampled_identity}

CHECKS: dict[str, Check] = {
    **FIRST_CHECKS,
    "sampled law": sampled_law,
    "claim": label,
    "EOS anywhere": eos_anywhere,
    "length cut": length_cut,
    "same seed": same_seed,
    "fresh state": fresh_state,
    "caches": caches,
    "drafted ranks": drafted_ranks,
    "declared needs": declared_needs,
    "wrong options": wrong_options,
    "closing": closing,  # the last one: it closes what the others use
}


def run_check(bench: Bench, check: Check) -> Result:
    """Its result; an exception is a failure, with its name."""
    try:
        return check(bench)
    except Exception as error:  # whatever a method raises is a finding about the method
        return Result(FAIL, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")

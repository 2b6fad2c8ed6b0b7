"""Puts any method through the checks that every method must pass: `python -m specbench.check method=<name> [pair=...]`.

Identity: the output equals autoregressive decoding token for token, greedy and, under keyed noise, at a temperature. Law: many
seeds against the exact distribution (chi-square); the one check of a method that claims the law and not the tokens. Limits: EOS
anywhere in an accepted block, lengths 1 to 5. State: a new sample knows nothing of the last one, and caches equal those of a
fresh prefill; heads draft what they are judged by. Conduct: declared needs, wrong options, closing. The checks run on a tiny
pair that they make themselves, and those of identity on the configured pair too; a method with trained heads gets tiny ones;
one that does not fit the tiny pair runs all of them on the configured one.

    bench = Bench(node, pair, prompts)          a method on a pair
    for name, check in CHECKS.items(): check(bench) -> Result

What these checks can see: a wrong token, a bias of the law above a tenth or so in total variation, state left over. That the
acceptance rules themselves are exact is proven by enumeration elsewhere.
"""

from specbench.check.bench import GREEDY, SAMPLED, Bench
from specbench.check.registry import CHECKS, FIRST_CHECKS, run_check
from specbench.check.result import FAIL, PASS, SKIP, Result

__all__ = ["CHECKS", "FAIL", "FIRST_CHECKS", "GREEDY", "PASS", "SAMPLED", "SKIP", "Bench", "Result", "run_check"]

"""Every method in conf/method goes through every check of `specbench.check`; a new one gets all of it for its YAML.

The checks themselves are put to the test, with faulty methods, in test_check.py. Workers are threads here: their processes have
tests of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import thread_worker

from specbench.check import CHECKS, FAIL, GREEDY, SAMPLED, SKIP, Bench
from specbench.check.__main__ import configured_bench
from specbench.check.law import sampled_law
from specbench.check.tiny import PROMPTS, make_tiny_pair
from specbench.check.tiny_heads import with_tiny_heads
from specbench.config.compose import compose
from specbench.config.options import ConfigError
from specbench.config.paths import CONF_DIR
from specbench.config.specs import PairSpec

METHODS = sorted(path.stem for path in (CONF_DIR / "method").glob("*.yaml") if not path.stem.startswith("_"))
# Beside every method as its YAML has it: where a rule draws instead of matching, the law is all there is to check.
VARIANTS = [
    *((name,) for name in METHODS),
    ("speculative", "method.rule=ratio"),
    ("pearl", "method.rule=lockstep_ratio", "method.draft_length=3"),
    ("eagle", "method.rule=delta", "method.num_nodes=6"),
    ("medusa", "method.rule=delta"),
    ("medusa", "method.rule=typical"),
    ("hydra", "method.rule=delta"),
]
RULE_CHECKS = ("greedy identity", "sampled law", "claim", "same seed", "fresh state", "caches")  # where a rule matters
LAW_SEEDS = 200
CASES = [(variant, check) for variant in VARIANTS for check in (CHECKS if len(variant) == 1 else RULE_CHECKS)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> PairSpec:
    return make_tiny_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def benches(pair: PairSpec) -> Iterator[Callable[[tuple[str, ...]], Bench]]:
    """One bench for all checks of a variant: on the tiny pair, or on the built-in one for methods that do not fit it."""
    made: dict[tuple[str, ...], Bench] = {}

    def bench_of(variant: tuple[str, ...]) -> Bench:
        if variant not in made:
            config = compose([f"method={variant[0]}", *variant[1:]])
            node = with_tiny_heads(config.method, pair, Path(pair.target.path).parent)
            made[variant] = Bench(node, pair, PROMPTS)
            thread_worker.install(monkeypatch)  # again and again: only now the method's modules are imported
            try:
                made[variant].method(GREEDY)
            except ConfigError:
                made[variant].close()
                made[variant] = configured_bench(config)
        return made[variant]

    with pytest.MonkeyPatch.context() as monkeypatch:
        yield bench_of
        for bench in made.values():
            bench.close()


@pytest.mark.parametrize(("variant", "check"), CASES, ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_contract(variant: tuple[str, ...], check: str, benches: Callable[[tuple[str, ...]], Bench]) -> None:
    bench = benches(variant)
    method = bench.method(SAMPLED)
    lossy = method.claim(SAMPLED) == "lossy"
    if check == "sampled law":
        if method.same_ids(SAMPLED) or lossy:
            pytest.skip("sampled identity says more" if not lossy else "lossy, and labelled so")
        result = sampled_law(bench, LAW_SEEDS)
    else:
        result = CHECKS[check](bench)
    assert result.status != FAIL, result.detail
    if result.status == SKIP:
        allowed = {"sampled identity": not method.same_ids(SAMPLED), "greedy identity": lossy, "claim": lossy}
        assert allowed.get(check), f"nothing was checked: {result.detail}"
    if check == "EOS anywhere" and bench.needs.draft != "none":
        found = re.search(r"in (\d+) of them", result.detail)
        assert found and int(found.group(1)) > 0, f"no EOS inside an accepted block: {result.detail}"


def test_the_list_is_what_the_folder_holds() -> None:
    assert {"autoregressive", "speculative", "amusd", "pearl", "eagle", "medusa"} <= set(METHODS)
    assert all((Path(CONF_DIR) / "method" / f"{name}.yaml").is_file() for name, *_ in VARIANTS)

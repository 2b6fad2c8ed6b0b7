"""Every method in conf/method goes through every check of `specbench.check`; a new one gets all of it for its YAML.

What looks at ids and at the law alone runs on a pair of bare modules, where a method allows it: some ten times faster. Identity
and caches run on models of transformers. Workers are threads here: their processes have tests of their own. The checks
themselves are put to the test, with faulty methods, in test_check.py.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import thread_worker
import torch
from bare_bench import BareBench
from run_folders import composed

from specbench.check import CHECKS, FAIL, GREEDY, SAMPLED, SKIP, Bench
from specbench.check.__main__ import configured_bench
from specbench.check.identity import same_seed, sampled_identity
from specbench.check.law import sampled_law
from specbench.check.result import Result
from specbench.check.state import caches
from specbench.check.tiny import PROMPTS, make_tiny_pair
from specbench.check.tiny_heads import with_tiny_heads
from specbench.config.options import ConfigError
from specbench.config.paths import CONF_DIR
from specbench.config.specs import PairSpec
from specbench.engine.sampling import NO_LAW, SamplingLaw
from specbench.pair.backend import choose_backend
from specbench.processes.placement import Placement
from specbench.run.arms import Arm

METHODS = sorted(path.stem for path in (CONF_DIR / "method").glob("*.yaml") if not path.stem.startswith("_"))
# Beside every method as its YAML has it: where a rule draws instead of matching, the law is all there is to check.
VARIANTS = [
    *((name,) for name in METHODS),
    ("speculative", "method.rule=ratio"),
    ("speculative", "method.shape=dynamic"),
    ("speculative", "method.shape=dynamic", "method.rule=delta"),
    ("speculative", "method.stop=confidence", "method.rule=ratio"),
    ("stand", "method.rule=recursive_without_replacement"),
    ("pearl", "method.rule=lockstep_ratio", "method.draft_length=3"),
    ("rsd", "method.rule=recursive_without_replacement"),  # the other drawn trees: by enumeration, in test_trees.py
    ("eagle", "method.rule=delta", "method.num_nodes=6"),
    ("medusa", "method.rule=delta", "method.num_nodes=6"),
    ("medusa", "method.rule=typical", "method.num_nodes=6"),
    ("hydra", "method.rule=delta", "method.num_nodes=6"),
]
RULE_CHECKS = ("greedy identity", "sampled law", "claim", "same seed", "fresh state", "caches")  # where a rule matters
# Of further methods and stops under `ratio` the law alone; where a target must have layers it takes models of transformers.
LAWS = [
    ("osd", "method.rule=ratio"),
    ("speculative", "method.stop=entropy", "method.rule=ratio"),
    ("speculative", "method.stop=goodput", "method.rule=ratio"),
]
LAWS_ON_LAYERS = [("layerskip", "method.rule=ratio"), ("swift", "method.rule=ratio")]
ON_BARE = ("sampled law", "EOS anywhere", "length cut", "same seed", "fresh state")
CASES = [(variant, check) for variant in VARIANTS for check in (CHECKS if len(variant) == 1 else RULE_CHECKS)]
CASES += [(variant, "sampled law") for variant in LAWS]
CASES += [pytest.param(variant, "sampled law", marks=pytest.mark.deep) for variant in LAWS_ON_LAYERS]  # type: ignore[misc]
LAW_SEEDS = 100
FEWER: dict[str, Callable[[Bench], Result]] = {  # the rest of the seeds is for `deep`
    "sampled law": functools.partial(sampled_law, num_seeds=LAW_SEEDS),
    "sampled identity": functools.partial(sampled_identity, seeds=1),
    "same seed": functools.partial(same_seed, num_seeds=3),
    "caches": functools.partial(caches, seeds=1),
}
SHORT_AND_LONG = (PROMPTS[0], PROMPTS[2])  # the third is for `deep`
HEADS = Path(__file__).parent / "golden"  # trained once and for all, for the recorded rounds


class Benches:
    """One bench for all checks of a variant of one kind; on the built-in pair for methods that do not fit the tiny one."""

    def __init__(self, pair: PairSpec, prompts: Any, monkeypatch: pytest.MonkeyPatch):
        self.pair, self.prompts, self.monkeypatch = pair, prompts, monkeypatch
        self.made: dict[tuple[tuple[str, ...], bool], Bench] = {}
        folder = Path(pair.target.path).parent
        for heads in HEADS.glob("heads_*"):
            if not (folder / heads.name).exists():
                (folder / heads.name).symlink_to(heads)

    def of(self, variant: tuple[str, ...], bare: bool) -> Bench:
        if (variant, bare) not in self.made:
            self.made[variant, bare] = self._bare(variant) or self.of(variant, False) if bare else self._real(variant)
        return self.made[variant, bare]

    def _opened(self, bench: Bench) -> Bench | None:
        thread_worker.install(self.monkeypatch)  # again and again: only now the method's modules are imported
        try:
            bench.method(GREEDY)
        except ConfigError:
            bench.close()
            return None
        return bench

    def _bare(self, variant: tuple[str, ...]) -> Bench | None:
        node = composed(f"method={variant[0]}", *variant[1:]).method
        return self._opened(BareBench(node, self.pair, self.prompts))

    def _real(self, variant: tuple[str, ...]) -> Bench:
        config = composed(f"method={variant[0]}", *variant[1:])
        node = with_tiny_heads(config.method, self.pair, Path(self.pair.target.path).parent)
        return self._opened(Bench(node, self.pair, self.prompts)) or configured_bench(config)

    def close(self) -> None:
        for bench in self.made.values():
            bench.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> PairSpec:
    return make_tiny_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def benches(pair: PairSpec) -> Iterator[Benches]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = Benches(pair, SHORT_AND_LONG, monkeypatch)
        yield made
        made.close()


@pytest.fixture(scope="module")
def native_benches(pair: PairSpec) -> Iterator[Benches]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = Benches(choose_backend(pair, "native")[0], SHORT_AND_LONG[:1], monkeypatch)
        yield made
        made.close()


@pytest.fixture(scope="module")
def deep_benches(pair: PairSpec) -> Iterator[Benches]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = Benches(pair, PROMPTS, monkeypatch)
        yield made
        made.close()


def check_contract(variant: tuple[str, ...], check: str, bench: Bench, how: Callable[[Bench], Result]) -> None:
    method = bench.method(SAMPLED)
    lossy = method.claim(SAMPLED) == "lossy"
    if check == "sampled law" and (method.same_ids(SAMPLED) or lossy):
        pytest.skip("sampled identity says more" if not lossy else "lossy, and labelled so")
    result = how(bench)
    assert result.status != FAIL, result.detail
    if result.status == SKIP:
        allowed = {"sampled identity": not method.same_ids(SAMPLED), "greedy identity": lossy, "claim": lossy}
        assert allowed.get(check), f"nothing was checked: {result.detail}"
    if check == "EOS anywhere" and (bench.needs.draft != "none" or type(method).heads_class is not None):
        found = re.search(r"in (\d+) of them", result.detail)
        assert found and int(found.group(1)) > 0, f"no EOS inside an accepted block: {result.detail}"


def named(value: Any) -> str:
    return value if isinstance(value, str) else "-".join(value)


@pytest.mark.parametrize(("variant", "check"), CASES, ids=named)
def test_contract(variant: tuple[str, ...], check: str, benches: Benches) -> None:
    bench = benches.of(variant, bare=check in ON_BARE)
    check_contract(variant, check, bench, FEWER.get(check, CHECKS[check]))


@pytest.mark.deep
@pytest.mark.parametrize(("variant", "check"), CASES, ids=named)
def test_contract_with_every_seed_on_real_models(variant: tuple[str, ...], check: str, deep_benches: Benches) -> None:
    check_contract(variant, check, deep_benches.of(variant, bare=False), CHECKS[check])


@pytest.mark.parametrize("name", METHODS)
def test_contract_on_the_native_backend(name: str, native_benches: Benches) -> None:
    """Ids and caches: what a round does with a target's answer is the same whoever computes it."""
    bench = native_benches.of((name,), bare=False)
    assert bench.target.backend == "native"
    for check in ("greedy identity", "sampled identity", "caches"):
        check_contract((name,), check, bench, FEWER.get(check, CHECKS[check]))


@contextlib.contextmanager
def no_numbers(module: Any, forwards: int) -> Iterator[None]:
    """A model whose logits hold NaN from its forward number `forwards` on; heads, which are parts of one, at once."""
    if not hasattr(module, "lm_head"):  # heads
        before = [weight.detach().clone() for weight in module.parameters()]
        with torch.no_grad():
            for weight in module.parameters():
                weight.fill_(math.nan)
        yield
        with torch.no_grad():
            for weight, value in zip(module.parameters(), before, strict=True):
                weight.copy_(value)
        return
    count = itertools.count(1)

    def break_logits(module: Any, given: Any, said: Any) -> Any:
        if next(count) >= forwards:
            said.logits = said.logits.clone()
            said.logits[..., 5] = math.nan
        return said

    handle = module.register_forward_hook(break_logits)
    yield
    handle.remove()


@pytest.mark.parametrize("law", [GREEDY, pytest.param(SAMPLED, marks=pytest.mark.slow)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_logits_that_are_no_numbers_fail_the_sample_whoever_made_them(
    variant: tuple[str, ...], law: SamplingLaw, benches: Benches
) -> None:
    """Target, draft, a draft in a worker, heads: an error that says so; and the next sample is as ever."""
    bench = benches.of(variant, bare=False)
    method, request = bench.method(law), bench.request(0, eos_ids=())
    worker = getattr(method.schedule, "worker", None)
    draft = worker.program.session.model if worker is not None else getattr(method.drafter, "model", bench._draft)
    made_by = [bench.target.module, *([draft.module] if draft is not None else []), getattr(method.drafter, "heads", None)]
    arm = Arm("method", method, "cpu", method.placement or Placement((), 1))
    before = arm.run(request, repeat=0, order=0, category=None)[0]
    assert before.error is None
    for module in filter(None, made_by):
        with no_numbers(module, forwards=3):
            record, rounds = arm.run(request, repeat=0, order=0, category=None)
        assert record.error is not None and NO_LAW in record.error, f"{type(module).__name__}: {record.error}"
        assert record.finish_reason == "error" and not rounds
        after = arm.run(request, repeat=0, order=0, category=None)[0]
        assert after.error is None
        if method.same_ids(law):
            assert after.output_ids == before.output_ids


def test_the_list_is_what_the_folder_holds() -> None:
    assert {"autoregressive", "speculative", "amusd", "pearl", "eagle", "medusa"} <= set(METHODS)
    assert all((Path(CONF_DIR) / "method" / f"{name}.yaml").is_file() for name, *_ in VARIANTS)


def test_most_methods_have_a_bare_bench(benches: Benches) -> None:
    """Else the contract would be dear again, and nobody would see why. What needs trained heads or layers may have none."""
    for name in ("autoregressive", "speculative", "amusd", "pearl"):
        assert isinstance(benches.of((name,), bare=True), BareBench)
    assert not isinstance(benches.of(("medusa",), bare=True), BareBench)


def test_the_bare_pair_agrees_often_and_not_always(benches: Benches) -> None:
    bench = benches.of(("speculative",), bare=True)
    rounds = [r for prompt in range(2) for r in bench.decode(GREEDY, bench.request(prompt, eos_ids=())).rounds]
    drafted, accepted = sum(r.num_drafted for r in rounds), sum(r.num_accepted for r in rounds)
    assert 0.3 * drafted < accepted < 0.95 * drafted

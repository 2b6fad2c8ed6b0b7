"""The checks find what they are for: a faulty method for each of them, and the command line around them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import faulty_methods
import pytest
from bare_bench import BareBench
from tiny import plain_forward

from specbench.check import CHECKS, FAIL, FIRST_CHECKS, PASS, SAMPLED, SKIP, Bench, run_check
from specbench.check import __main__ as command
from specbench.check import law as law_module
from specbench.check import tiny as tiny_pair
from specbench.check.__main__ import main
from specbench.check.identity import sampled_identity
from specbench.check.law import chi_square, exact_law, sampled_law
from specbench.check.tiny import PROMPTS, make_tiny_pair
from specbench.config.options import ConfigError
from specbench.config.specs import PairSpec
from specbench.method import create_method

FAULTS = [
    ("ArgmaxUnderRatio", "sampled law", "claims sampling-exact"),
    ("DropsUnlikelyDrafts", "sampled law", "claims sampling-exact"),
    ("TypicalUnlabelled", "claim", "rule typical is lossy"),
    ("OtherNoise", "sampled identity", "first difference"),
    ("Remembers", "fresh state", "other rounds"),
    ("ForgetsToReset", "fresh state", "other rounds"),
    ("IgnoresEos", "EOS anywhere", "finish_reason length"),
    ("OneTooMany", "length cut", "25 tokens where 24"),
    ("MiscountsRounds", "greedy identity", "IdentityError"),
    ("KeepsRejectedRows", "caches", "target: prompt"),
    ("DraftsOnAnotherPrompt", "caches", "draft: prompt"),
    ("Unseeded", "same seed", "gave two outputs"),
    ("OneSeedForAll", "same seed", "all seeds give the same"),
    ("NeedsNoDraft", "declared needs", "opens without one"),
    ("UndeclaredTaps", "declared needs", "are taken"),
    ("TakesAnything", "wrong options", "is accepted"),
    ("NamesTheWrongOption", "wrong options", "TypeError"),
    ("ClosesOnce", "closing", "AttributeError"),
    ("IidWithoutLaw", "sampled law", "not sampling-exact for a draft of contract fixed_set"),
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> PairSpec:
    return make_tiny_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(autouse=True)
def fewer_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(law_module, "NUM_SEEDS", 400)


@pytest.fixture
def benches(pair: PairSpec) -> Iterator[dict[str, Bench]]:
    made: dict[str, Bench] = {}
    yield made
    for bench in made.values():
        bench.close()


def bench_of(name: str, pair: PairSpec, benches: dict[str, Bench], kind: type[Bench] = BareBench) -> Bench:
    benches[name] = kind({"_target_": f"faulty_methods.{name}"}, pair, PROMPTS, allow_targets=["faulty_methods"])
    return benches[name]


@pytest.mark.parametrize("kind", [BareBench, pytest.param(Bench, marks=pytest.mark.deep)], ids=["bare", "real"])
@pytest.mark.parametrize(("name", "check", "words"), FAULTS, ids=lambda part: part.replace(" ", "_"))
def test_a_faulty_method_is_found(
    name: str, check: str, words: str, kind: type[Bench], pair: PairSpec, benches: dict[str, Bench]
) -> None:
    result = run_check(bench_of(name, pair, benches, kind), CHECKS[check])
    assert result.status == FAIL
    assert words in result.detail
    if name == "ClosesOnce":
        benches.clear()


def test_wrong_options_are_looked_for_in_parts_too(pair: PairSpec, benches: dict[str, Bench]) -> None:
    node = {"_target_": "specbench.methods.chains.speculative.Speculative", "draft_length": 4}
    loose = {**node, "stop": {"_target_": "faulty_methods.Loose"}}
    for name, made, status in (("sound", node, PASS), ("loose", loose, FAIL)):
        benches[name] = BareBench(made, pair, PROMPTS, allow_targets=["faulty_methods"])
        result = run_check(benches[name], CHECKS["wrong options"])
        assert result.status == status, result.detail
    assert "stop.width='no such thing' is accepted" in result.detail


def test_every_check_has_a_method_that_it_finds() -> None:
    assert {check for _, check, _ in FAULTS} == set(CHECKS) - {"drafted ranks"}, "which test_heads.py puts to the test"
    assert {name for name, _, _ in FAULTS} <= set(vars(faulty_methods))


def test_the_control_typical_acceptance_fails_the_sampled_law(pair: PairSpec, benches: dict[str, Bench]) -> None:
    """Lossy and labelled so: the law check finds it, the label passes, and no identity is claimed."""
    bench = bench_of("Typical", pair, benches)
    result = sampled_law(bench)
    assert result.status == FAIL and "labelled lossy, and it is" in result.detail
    assert run_check(bench, CHECKS["claim"]).status == SKIP
    assert sampled_identity(bench).status == SKIP
    for name in ("EOS anywhere", "same seed"):
        assert run_check(bench, CHECKS[name]).status == PASS, "lossy is no excuse"


# ------------------------------------------------------------------------------------------------ the statistics
def test_the_exact_law_is_the_product_of_fresh_forwards(pair: PairSpec, benches: dict[str, Bench]) -> None:
    bench = benches["ar"] = Bench({"_target_": "specbench.methods.chains.autoregressive.Autoregressive"}, pair, PROMPTS)
    law = exact_law(bench, SAMPLED, prompt=2, length=2)
    assert abs(sum(law.values()) - 1) < 1e-6 and len(law) == 9
    for (a, b), probability in itertools.islice(law.items(), 4):
        first, second = (
            SAMPLED.probabilities(plain_forward(bench.target.module, ids)[-1]) for ids in (PROMPTS[2], (*PROMPTS[2], a))
        )
        assert abs(float(first[a] * second[b]) - probability) < 1e-6


def test_chi_square_agrees_with_scipy_and_pools_what_is_rare() -> None:
    from scipy.stats import chisquare

    law = {(0,): 0.5, (1,): 0.3, (2,): 0.2}
    counts = {(0,): 60, (1,): 25, (2,): 15}
    statistic, freedom, p_value = chi_square(counts, law)
    expected = chisquare([60, 25, 15], [50, 30, 20])
    assert (round(statistic, 9), freedom) == (round(float(expected.statistic), 9), 2)
    assert abs(p_value - float(expected.pvalue)) < 1e-12
    rare = {(0,): 0.5, (1,): 0.46, **{(k,): 0.01 for k in range(2, 6)}}  # four cells expected once in 100 each: one cell of 4
    assert chi_square({(0,): 50, (1,): 46, (2,): 4}, rare) == (0.0, 1, 1.0)
    assert chi_square({(9,): 1, (0,): 99}, law)[2] == 0.0, "an impossible sequence"


# ------------------------------------------------------------------------------------------------ the command line
@pytest.fixture
def own_conf(tmp_path: Path) -> str:
    folder = tmp_path / "conf" / "method"
    folder.mkdir(parents=True)
    (folder / "typical_control.yaml").write_text("_target_: faulty_methods.Typical\ndraft_length: null\n")
    return str(tmp_path / "conf")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One text on the configured pair, two on the tiny one, and seeds enough for a law that is far off."""
    monkeypatch.setattr(tiny_pair, "PROMPTS", PROMPTS[:2])
    monkeypatch.setattr(law_module, "NUM_SEEDS", 150)
    monkeypatch.setattr(command, "TEXTS", command.TEXTS[:1])


@pytest.mark.usefixtures("quick")
def test_the_command_checks_a_method_of_ones_own(own_conf: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["method=typical_control", "--config-dir", own_conf, "allow_targets=[faulty_methods]"]
    assert main(arguments) == 1
    out = capsys.readouterr().out.splitlines()
    (law,) = [line for line in out if "sampled law" in line]
    total = len(CHECKS) + len(FIRST_CHECKS)
    assert re.match(rf"FAIL  \[\d+/{total}\] tiny pair: sampled law: 150 seeds: chi-square", law)
    assert [line for line in out if re.match(r"pass  \[\d+/\d+\] tiny pair: EOS anywhere", line)]
    assert [line for line in out if re.match(rf"skip  \[{len(CHECKS) + 1}/{total}\] builtin pair: greedy identity", line)]
    assert [line.split()[1] for line in out[:-1]] == [f"[{n}/{total}]" for n in range(1, total + 1)]
    assert out[-1] == "typical_control: 1 checks failed"


@pytest.mark.usefixtures("quick")
def test_the_command_passes_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["method=autoregressive"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1].strip() for line in out if "tiny pair" in line] == list(CHECKS)
    assert (
        f"pass  [{len(CHECKS) + 1}/{len(CHECKS) + len(FIRST_CHECKS)}] builtin pair: greedy identity: 1 of 1 outputs identical"
        in out
    )
    assert out[-1] == "autoregressive: all checks passed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method=speculativ"], "speculative"),
        (["method=speculative", "method.rule=typical"], "method.rule='typical'"),
        (["method=speculative", "--config-dir", "no/such/folder"], "--config-dir='no/such/folder'"),
        (["method=typical_control"], "typical_control"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and words in err


def test_a_method_outside_is_not_run_unless_allowed(own_conf: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["method=typical_control", "--config-dir", own_conf]) == 2
    assert "allow_targets" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        create_method({"_target_": "faulty_methods.Typical"})

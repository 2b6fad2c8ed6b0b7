"""The tutorial's methods, taken from their page, do what the page says: they draft, pass every check, its commands work."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import thread_worker
import tiny
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from law_tools import WRONG, broken_claims
from miniature import FUNCTION

import specbench.check.__main__ as command
import specbench.check.tiny as tiny_pair
import specbench.train.__main__ as training
from specbench.check import CHECKS, FAIL, FIRST_CHECKS, GREEDY, PASS, SAMPLED, SKIP, Bench, law
from specbench.check.identity import same_seed, sampled_identity
from specbench.check.tiny_heads import make_tiny_heads
from specbench.config.create import GROUP, create_part
from specbench.config.options import ConfigError
from specbench.config.specs import PairSpec
from specbench.engine.request import NOBODYS
from specbench.method import RULES, Contract, Rule, Stop, Verdict, create_method

PAGE = Path(__file__).resolve().parents[1] / "methods" / "README.md"
ALLOWED = ["my_methods"]
METHODS = {"my_lookup": "lookup", "my_hybrid": "hybrid", "my_heads": "linear", "my_margin": "margin"}  # name: its module
STOP = {"_target_": "my_methods.margin.MarginStop"}
RULE = {"_target_": "my_methods.rule.DrawAndCompare"}
PROMPTS = tiny_pair.PROMPTS[1:]
Benches = Callable[..., Bench]


def blocks(text: str) -> dict[str, str]:
    """The page's code blocks by file name (the first line says it), and all lines of shell under "sh"."""
    found = {"sh": ""}
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        if language == "sh":
            found["sh"] += body
        else:
            found[body.splitlines()[0].removeprefix("# ")] = body
    return found


def commands(page: dict[str, str], module: str) -> list[list[str]]:
    """The words behind `python -m <module>`, line by line."""
    lines = [shlex.split(line) for line in page["sh"].splitlines()]
    return [words[3:] for words in lines if words[:3] == ["python", "-m", module]]


def forget() -> None:
    """The page's modules are imported anew, and its rule is no longer known."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_methods"]:
        del sys.modules[name]
    RULES.pop("draw_and_compare", None)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The files of the page, in a folder of their own that Python runs in."""
    folder, found = tmp_path_factory.mktemp("tutorial"), blocks(PAGE.read_text())
    for name, body in found.items():
        if name != "sh":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        forget()
        yield found
        forget()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> PairSpec:
    return tiny_pair.make_tiny_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def fewer(pair: PairSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tiny pair for all, two prompts on it, one on the built-in pair, few seeds (the ids are compared as well)."""
    monkeypatch.setattr(tiny_pair, "make_tiny_pair", lambda folder: pair)
    monkeypatch.setattr(tiny_pair, "PROMPTS", PROMPTS)
    monkeypatch.setattr(command, "TEXTS", command.TEXTS[:1])
    monkeypatch.setattr(law, "NUM_SEEDS", 20)
    for checks in (CHECKS, FIRST_CHECKS):
        monkeypatch.setitem(checks, "sampled identity", partial(sampled_identity, seeds=1))
    monkeypatch.setitem(CHECKS, "same seed", partial(same_seed, num_seeds=2))


def node_of(name: str) -> dict[str, Any]:
    return command.compose([f"method={name}", "allow_targets=[my_methods]"], ["my_conf"]).method


@pytest.fixture
def bench_of(pair: PairSpec) -> Iterator[Benches]:
    """A method's node with some options changed, on the tiny pair."""
    with contextlib.ExitStack() as opened:

        def make(node: dict[str, Any], **changes: Any) -> Bench:
            bench = Bench({**node, **changes}, pair, PROMPTS, ALLOWED)
            opened.callback(bench.close)
            return bench

        yield make


def replaced(name: str, old: str, new: str) -> None:
    """A file of the page is written otherwise in one place, until `page_again`."""
    path = Path("my_methods") / f"{name}.py"
    body = path.read_text()
    assert body.count(old) == 1, f"{name} no longer says {old!r}"
    path.write_text(body.replace(old, new))
    forget()


@pytest.fixture
def page_again(page: dict[str, str]) -> Iterator[None]:
    yield
    for name, body in page.items():
        if name.endswith(".py"):
            Path(name).write_text(body)
    forget()


# ------------------------------------------------------------------------------------------------ files and commands
def test_the_page_holds_a_file_and_a_yaml_of_each_kind(page: dict[str, str]) -> None:
    files = {f"my_methods/{module}.py" for module in (*METHODS.values(), "rule")}
    assert set(page) == files | {f"my_conf/method/{name}.yaml" for name in METHODS} | {"sh", "pyproject.toml"}
    assert len(page["sh"].splitlines()) == sum(len(commands(page, f"specbench{room}")) for room in ("", ".check", ".train"))


def test_what_is_run_and_trained_composes(page: dict[str, str]) -> None:
    names = []
    for words in commands(page, "specbench"):
        parsed = get_args_parser().parse_args(words)
        config = command.compose(parsed.overrides, [parsed.config_dir])
        create_method(config.method, config.allow_targets)
        names.append((config.method_name, config.data.name))
    assert names == [("my_lookup", "humaneval"), ("my_heads", "humaneval")]


def test_a_package_ships_its_files(page: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the entry point of the page neither --config-dir nor allow_targets is needed."""
    points = tomllib.loads(page["pyproject.toml"])["project"]["entry-points"][GROUP]
    folder = Path("installed")
    shutil.copytree("my_methods", folder / "my_methods", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree("my_conf", folder / "my_methods" / "conf")
    (folder / "my_methods-1.dist-info").mkdir()
    (folder / "my_methods-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: my_methods\nVersion: 1\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (folder / "my_methods-1.dist-info" / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(Path.cwd())
    forget()
    assert entry_points(group=GROUP)
    for name in METHODS:
        create_method(command.compose([f"method={name}"], []).method)
    forget()


# ------------------------------------------------------------------------------------------------ the checks
def check_words(page: dict[str, str], name: str) -> list[str]:
    """The page's command for its first method, which it gives for all of them."""
    first = commands(page, "specbench.check")[0]
    assert "method=my_lookup" in first
    return [f"method={name}" if word == "method=my_lookup" else word for word in first]


@pytest.mark.parametrize("name", METHODS)
def test_the_check_command_passes_every_check(
    name: str, page: dict[str, str], fewer: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(check_words(page, name)) == 0
    out = capsys.readouterr().out.splitlines()
    passed = [line.split(":")[1].strip() for line in out if re.match(rf"{PASS}  \[ *\d+/\d+\] tiny pair", line)]
    assert passed == list(CHECKS)
    skipped = [line for line in out if line.startswith(SKIP)]
    assert len(skipped) == (name == "my_heads") and all("the built-in pair has none" in line for line in skipped)
    (eos,) = [line for line in out if "EOS anywhere" in line]
    assert not eos.endswith("in 0 of them the EOS was an accepted draft")
    assert out[-1] == f"{name}: all checks passed"


@pytest.mark.parametrize("name", ["amusd", "pearl"])
def test_methods_in_two_processes_take_the_stop(
    name: str, page: dict[str, str], bench_of: Benches, monkeypatch: pytest.MonkeyPatch
) -> None:
    (words,) = [words for words in commands(page, "specbench.check") if f"method={name}" in words]
    config = command.compose(words, [])
    assert config.method["stop"] == STOP
    bench = bench_of(config.method, draft_length=3)
    thread_worker.install(monkeypatch)  # the method's modules are imported by now
    assert type(bench.method(GREEDY).schedule.stop).__name__ == "MarginStop"  # type: ignore[attr-defined]
    for check in ("greedy identity", "sampled identity", "length cut", "fresh state"):
        assert CHECKS[check](bench).status == PASS


# ------------------------------------------------------------------------------------------------ what each one does
def drafted_on_its_own_text(bench: Bench) -> list[Any]:
    """Rounds of the greedy continuations of all prompts."""
    requests = [bench.request(prompt, eos_ids=()) for prompt in range(len(bench.prompts))]
    return [r for request in requests for r in bench.decode(GREEDY, request).rounds]


def test_lookup_drafts_what_was_there_before(page: dict[str, str]) -> None:
    method = create_method({**node_of("my_lookup"), "draft_length": 3}, ALLOWED)
    around, drafter = tiny.runtime(tiny.model()), method.drafter
    drafter.begin(tiny.request(around, [3, 4, 5, 6, 7, 3]), 4, None)  # type: ignore[arg-type]
    assert drafter.propose(10).tokens == [5, 6, 7]
    assert drafter.propose(2).tokens == [5, 6]
    drafter.begin(tiny.request(around, [3, 4]), 5, None)  # type: ignore[arg-type]
    assert drafter.propose(10).tokens == []


def test_hybrid_drafts_by_both(page: dict[str, str], bench_of: Benches) -> None:
    rounds = drafted_on_its_own_text(bench_of(node_of("my_hybrid"), ngram=1))
    copied = [r for r in rounds if r.phase == "copied"]
    assert copied and not any(r.num_draft_forwards for r in copied)
    assert [r for r in rounds if r.phase == "" and r.num_drafted == r.num_draft_forwards > 0]


def test_heads_are_trained_by_the_command(page: dict[str, str], bench_of: Benches, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's command in miniature makes heads that the page's method loads, for the target that they were trained for."""
    source = Path("source")
    source.mkdir()
    for n in range(60):
        (source / f"module_{n}.py").write_text(FUNCTION.format(n=n))
    tiny.save(Path("target"), tiny.module(vocab_size=100))
    options = {"work": "work", "source": source.resolve(), "source_licence": "MIT", "threads": 1, "tokens": 300}
    options |= {"generate_rows": 4, "pool_rows": 8, "new_tokens": 12, "autocast": "false", "device": "cpu"}
    (words,) = commands(page, "specbench.train")
    words += [f"pair.target={Path('target').resolve()}", "pair.draft=null", "parts.heads.length=64", "parts.heads.rows=2"]
    words += [f"train.{name}={value}" for name, value in options.items()]
    monkeypatch.setattr(sys, "argv", ["specbench.train", *words])
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # what Hydra leaves behind goes with this test
    training.main()
    (out,) = [word.partition("=")[2] for word in words if word.startswith("train.out=")]
    assert {"heads.json", "heads.safetensors", "README.md"} <= {path.name for path in Path(out).iterdir()}
    with pytest.raises(ConfigError, match="trained for a target of sha256"):
        bench_of(node_of("my_heads"), heads=out).method(GREEDY)
    method = create_method({**node_of("my_heads"), "heads": out}, ALLOWED)
    around = tiny.runtime(tiny.model(vocab_size=100))
    assert sum(r.num_drafted for r in tiny.decode(method, around, [3, 4, 5]).rounds) > 0


def test_the_stop_stops_where_the_draft_is_unsure_and_learns(page: dict[str, str]) -> None:
    import torch

    stop = create_part(STOP, Stop, ALLOWED, "method.stop")
    sure, unsure = torch.tensor([[9.0, 0.0, 0.0]]), torch.zeros(1, 24)
    stop.begin(NOBODYS)
    assert stop.goes_on(sure, 0) and not stop.goes_on(unsure, 0)
    for _ in range(20):
        stop.learn(4, 4)
    assert stop.goes_on(unsure, 0)
    stop.begin(NOBODYS)
    assert not stop.goes_on(unsure, 0)
    for option, value in (("draft_length", 0), ("threshold", 2.0)):
        with pytest.raises(ConfigError) as raised:
            create_part({**STOP, option: value}, Stop, ALLOWED, "method.stop")
        assert raised.value.key == f"method.stop.{option}"


def test_the_rule_keeps_the_law_and_is_known_by_name(page: dict[str, str], bench_of: Benches) -> None:
    bench = bench_of(node_of("my_hybrid"), rule=RULE)
    rule = RULES["draw_and_compare"]
    assert bench.method(SAMPLED).rule_for(SAMPLED) == rule and rule.accepts == set(Contract)
    for check in ("greedy identity", "claim", "same seed"):
        assert CHECKS[check](bench).status == PASS
    assert not broken_claims(rule), "the suite that takes every registered rule"


# ------------------------------------------------------------------------------------------------ a broken tutorial is found
def test_a_lookup_that_remembers_is_found(
    page: dict[str, str], page_again: None, fewer: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced("lookup", "self.tokens = [*request.prompt_ids, first_token]", "self.tokens = getattr(self, 'tokens', [1])")
    for checks, left in ((CHECKS, "fresh state"), (FIRST_CHECKS, "")):
        for check in set(checks) - {left}:
            monkeypatch.delitem(checks, check)
    assert command.main(check_words(page, "my_lookup")) == 1
    assert f"{FAIL}  [1/1] tiny pair: fresh state" in capsys.readouterr().out


def test_a_hybrid_under_ratio_is_found(page: dict[str, str], page_again: None, bench_of: Benches) -> None:
    replaced("hybrid", "rules = exact_rules(trees=False)", "rules = None")
    bench = bench_of(node_of("my_hybrid"), rule="ratio", ngram=1)
    with pytest.raises(ValueError, match="not sampling-exact for a draft of contract fixed_set"):
        CHECKS["sampled law"](bench)


def test_heads_that_fill_a_tree_with_other_guesses_are_found(
    page: dict[str, str], page_again: None, pair: PairSpec, bench_of: Benches, tmp_path: Path
) -> None:
    def accepted() -> float:
        bench = bench_of(node_of("my_heads"), heads=str(tmp_path), num_nodes=8)
        rounds = drafted_on_its_own_text(bench)
        return sum(r.num_accepted for r in rounds) / len(rounds)

    make_tiny_heads(type(create_method(node_of("my_heads"), ALLOWED)).heads_class, pair, tmp_path)
    right = accepted()
    assert right > 0.5
    replaced("linear", "pick(self.guess(", "pick(-self.guess(")
    assert accepted() < right / 2


def test_a_stop_that_remembers_is_found(page: dict[str, str], page_again: None, bench_of: Benches) -> None:
    replaced("margin", "self.least = self.threshold", "self.least = getattr(self, 'least', self.threshold)")
    assert "other rounds" in CHECKS["fresh state"](bench_of(node_of("my_margin"))).detail


def test_a_rule_that_keeps_what_was_not_drawn_is_found(page: dict[str, str]) -> None:
    create_part(RULE, object, ALLOWED, "method.rule")
    right = RULES["draw_and_compare"]

    def generous(tree: Any, p: Any, coins: Any) -> Verdict:
        verdict = right.function(tree, p, coins)
        return verdict if verdict.path or not tree.tokens else Verdict((0,), (tree.tokens[0], verdict.extra))

    wrong = Rule(right.name, right.accepts, right.claim, right.reads, generous, right.chain_only)
    assert max(broken_claims(wrong).values()) > WRONG

"""What a person may get wrong in a machine's description, in measured costs and in the simulator's options: one line each."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_sim import PAIR

from specbench.config.options import ConfigError
from specbench.config.paths import CONF_DIR
from specbench.sim.__main__ import main
from specbench.sim.compare import Bench
from specbench.sim.described import machine_of
from specbench.sim.hardware import load_costs, preset_names
from specbench.sim.options import parse

H100 = yaml.safe_load((CONF_DIR / "sim" / "devices" / "h100.yaml").read_text())
NO_NUMBERS: tuple[Any, ...] = (None, "3e12", "text", -1, float("nan"), float("inf"), True, [], {}, [1], 1e300)
WRONG = {
    "title": (None, "", 3, [], {}),
    "num_devices": (None, "2", 0, -1, 1.5, float("inf"), True, []),
    "weight_bytes": (*NO_NUMBERS, 0),
    "target": (None, "text", 3, [], {}, [1]),
    "draft": (None, "text", 3, [], {}, [1]),
    "link": (None, "text", 3, [], {}, [1]),
    "target.bytes_per_second": (*NO_NUMBERS, 0),
    "draft.flops_per_second": (*NO_NUMBERS, 0),
    "draft.overhead_seconds": NO_NUMBERS,
    "link.latency_seconds": NO_NUMBERS,
    "link.bytes_per_second": (*NO_NUMBERS, 0),
    "shared": (None, "bytes_per_second", 3, {}, ["bytes"], [None], [3]),
    "each": (None, "yes", 1, []),
}
LACKS = [key for key in WRONG if key not in ("each", "draft.overhead_seconds")]


def changed(key: str, *value: Any) -> dict[str, Any]:
    """The preset with another value, or without the key."""
    facts = copy.deepcopy(H100)
    *above, last = key.split(".")
    place = facts[above[0]] if above else facts
    place.pop(last, None)
    place |= {last: value[0]} if value else {}
    return facts


def refused(call: Any, *given: Any) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        call(*given)
    assert "\n" not in str(raised.value) and " object " not in str(raised.value), "Python's words"
    return raised.value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["methods=suffix"], "a chain of a model or of the text"),
        (["methods=medusa"], "a chain of a model or of the text"),
        (["methods=specinfer"], "a chain of a model or of the text"),
        (["methods=autoregressive"], "methods='autoregressive': has no draft_length"),
        (["serve", "stage_acceptance=0.9"], "stage_acceptance=[0.9]: is of a chain of drafts"),
    ],
)
def test_what_is_not_simulated_is_said_with_what_is(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "pair=llama3.1_8b_1b", "devices=h100", "samples=1", "tokens=8"]) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1 and "method.draft_length" not in printed


def test_every_preset_that_ships_is_complete() -> None:
    for name in preset_names():
        machine_of(name, yaml.safe_load((CONF_DIR / "sim" / "devices" / f"{name}.yaml").read_text()))


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_in_a_description_is_named_by_its_key(key: str) -> None:
    for value in WRONG[key]:
        assert refused(machine_of, "mine", changed(key, value)).key.startswith(f"mine.{key}"), value


@pytest.mark.parametrize("key", LACKS)
def test_what_a_description_lacks_is_named(key: str) -> None:
    error = refused(machine_of, "mine", changed(key))
    assert error.key == f"mine.{key}" and "must be given" in error.remedy


def test_an_unknown_key_is_named_and_a_device_each_needs_no_number() -> None:
    assert refused(machine_of, "mine", changed("lnk", 3)).key == "mine.lnk"
    assert refused(machine_of, "mine", changed("target.byte_per_second", 3)).key == "mine.target.byte_per_second"
    facts = changed("num_devices")
    assert machine_of("mine", facts | {"each": True}).each


NO_YAML = [
    "",
    "[]",
    "[1, 2]",
    "abc",
    "3",
    "{a: [",
    "title: x\n  y: 3\n: :",
    "\0",
    "a: !!python/object:os.system {}",
    "? [a]",
    "&a [*a]",
]


@pytest.mark.parametrize("text", NO_YAML)
def test_a_file_that_is_no_description_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert str(path) in str(refused(load_costs, str(path), PAIR))


def test_a_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    for name in ("mine.yaml", "mine.json"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x80")
        assert "UTF-8" in refused(load_costs, str(tmp_path / name), PAIR).remedy


POINTS = [[rows, context, 1, 0.001 * rows] for rows in (1, 20) for context in (0, 1000)]
MODES = ("alone", "turns", "beside waiting", "beside row", "beside rows")
COSTS = {
    "format_version": 2,
    "label": "here",
    "num_devices": 1,
    "pair": {"name": "pair", "target": {"name": PAIR.target.name}, "draft": {"name": PAIR.draft.name if PAIR.draft else ""}},
    "curves": [{"role": role, "mode": mode, "points": POINTS} for role in ("target", "draft") for mode in MODES],
    "prefill": {"target": POINTS, "draft": POINTS},
    "link": {"latency_seconds": 1e-6, "bytes_per_second": None},
    "around": {},
}
NO_COSTS: list[dict[str, Any]] = [
    *({key: value} for key in COSTS for value in (None, "x", -1.5, [1], [None]) if key != "label" or value != "x"),
    *({"link": {"latency_seconds": value}} for value in (None, "1", -1, True, [])),
    *(
        {"curves": [{"role": "target", "mode": "alone", "points": points}]}
        for points in (None, "x", [[1, 2]], [["a", 0, 1, 1]])
    ),
    *({"prefill": {"target": points}} for points in (None, "x", 3, [[1, 0, 1, "x"]], [[1, 0, 1, float("nan")]], [[]])),
    {"curves": COSTS["curves"][:-1]},
    {"around": {"speculative": {"target": "x"}}},
]


def test_measured_costs_are_read_and_whatever_else_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(COSTS))
    load_costs(str(path), PAIR)
    for change in NO_COSTS:
        path.write_text(json.dumps(COSTS | change))
        assert str(path) in str(refused(load_costs, str(path), PAIR)), change
    for text in ("", "[", "[]", "3", "null", '"x"'):
        path.write_text(text)
        assert str(path) in str(refused(load_costs, str(path), PAIR)), text


BAD_OPTIONS = [
    *(
        "samples=1000000000",
        "tokens=1000000000",
        "prompt_tokens=1000000000",
        "draft_lengths=2,1000000000",
        "max_batch=1000000000",
    ),
    *("num_requests=1000000000", "replicas=1000000000", "rows=1000000", "contexts=1000000000", "experts=1000000000"),
    *("requests_per_second=1e300", "requests_per_second=1e-300", "requests_per_second=nan", "seconds=inf", "seconds=1e300"),
    *(
        "tokens=[",
        'seed="x',
        "samples=,",
        "tokens={a: 1",
        "samples=1e9",
        "methods=null",
        "methods=3",
        "methods=[1]",
        "methods=nan",
    ),
    *("stage_acceptance=1.5", "stage_acceptance=-1", "acceptances=nan", "draft_shares=0", "samples=100000;tokens=1000"),
    "replicas=10000;num_requests=10000",
]


@pytest.mark.parametrize("written", BAD_OPTIONS)
def test_an_option_that_is_none_or_too_much_is_refused_at_once(written: str) -> None:
    assert refused(parse, written.split(";")).key == written.partition("=")[0]


def test_numbers_are_taken_as_a_person_writes_them() -> None:
    options, rest = parse(["requests_per_second=1e3,2", "seconds=5", "tokens=64", "arrivals=null", "draft_lengths=3"])
    assert options.requests_per_second == (1000.0, 2) and options.seconds == 5 and options.tokens == 64 and not rest


def test_rates_of_more_stages_than_any_chain_has_are_refused() -> None:
    chain = {"_target_": "specbench.methods.overlap.pipespec.PipeSpec", "stages": ["draft", "target:8"]}
    plain = {"_target_": "specbench.methods.chains.speculative.Speculative"}
    for nodes, rates in (({"p": chain}, "0.9,0.95"), ({"s": plain}, "0.9")):
        bench = Bench(parse([f"stage_acceptance={rates}"])[0], PAIR, nodes, plain)
        assert refused(bench.refuse_other_stages).key == "stage_acceptance"
    Bench(parse(["stage_acceptance=0.9"])[0], PAIR, {"p": chain, "s": plain}, plain).refuse_other_stages()


def test_a_broken_description_is_one_line_at_the_door(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("title: [")
    assert (
        main([f"devices={tmp_path / 'mine.yaml'}", "pair=llama3.1_8b_1b", "samples=1", "tokens=8", "methods=speculative"]) == 2
    )
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "mine.yaml" in said[0]


@pytest.mark.parametrize(("name", "said"), [("easyspec", "side by side"), ("dyspec", "dynamic tree"), ("rsd", "a beam")])
def test_drafts_that_are_no_chain_of_one_model_are_refused(name: str, said: str) -> None:
    from specbench.config.compose import compose
    from specbench.method import create_method
    from specbench.sim.play import refuse_what_cannot_be_simulated

    node = compose([f"method={name}"]).method
    with pytest.raises(ConfigError, match=said):
        refuse_what_cannot_be_simulated(node, create_method(node))
    chain = compose(["method=speculative"]).method
    refuse_what_cannot_be_simulated(chain, create_method(chain))

"""Random command lines in one process: whatever is typed, one line that names the key and status 2, or a run that can begin.

The run behind the door does everything that a run does before a folder exists (`prepare`), and no more. What a value must do is
known from the option's kind: a good one is accepted, unless the whole set contradicts itself, and a bad one is refused by name.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import pickle
import random
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import BUILTIN

from specbench.config.schema import RunConfig, validate
from specbench.config.specs import ModelSpec
from specbench.front import cli

WORDS = [
    "abc",
    "ä",
    "-",
    "_",
    "../..",
    "1_000_0x",
    "0x1G",
    "1e",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "True False",
    "a b",
    "$HOME",
    "%s",
]
ODD = ["[]", "{}", "[1,2]", "{a:1}", "[[1]]", "{a:{b:c}}", "[null]"]
TEXTS = {*ODD, "null"}  # all that an option that takes any text refuses
BROKEN = [
    "[",
    "{a",
    "'",
    '"x',
    "a=b=c",
    "${",
    "${x}",
    "${nope:1}",
    "(1",
    "\\",
    "a,",
    "[1,",
    "}",
    ",",
    "@",
    "\x01",
    "{a:1",
    "x:y:z:",
]
UNREAD = ["[", "{a", '"x', "a=b=c", "${", "${x}", "(1", "[1,", "}", ",", "{a:1"]  # not even a text
NUMBERS = ["-1", "-0.5", "1.5", "1e-3", "99999999999999999999999999"]
UNKNOWN = [
    *(
        "decoding.tempratur=1",
        "nothing=1",
        "method.gama=3",
        "data.limits=3",
        "pair.target.name=x",
        "decoding.seed.x=1",
        "a.b.c.d=1",
    ),
    *("method=speculativ", "data=humanevil", "pair=none_of_these", "engine=none", "track=nowhere", "experiment=no_such"),
    *("method@baselin=autoregressive", "data@x=humaneval", "+decoding.x=1", "++data.y=[1]", "~nothing", "~decoding.seed=7x"),
    *(
        "decoding",
        "=",
        "=1",
        "==",
        "decoding=1",
        "pair=1",
        "data.=1",
        ".data=1",
        "+=1",
        "~",
        "method@=x",
        "method._target_=os.system",
    ),
    *("method._target_=specbench.engine.session.Session", "method._target_=nowhere", "method._target_=specbench.no.Class"),
    *("baseline._target_=builtins.eval", "method=null", "method=[]", "data=null", "measure=[]", "hydra.nothing=1"),
    *(
        "method={_target_: 3}",
        "sweep.name='a/b'",
        "method.stop={_target_: os.system}",
        "method.rule=nothing",
        "method.stop=nothing",
    ),
]
GOOD: dict[str, list[str]] = {
    "method": [
        "speculative",
        "autoregressive",
        "amusd",
        "pearl",
        "prompt_lookup",
        "lookahead",
        "eagle",
        "medusa",
        "hydra",
        "osd",
    ],
    "data": ["humaneval", "mt_bench"],
    "pair": ["builtin"],
    "data.limit": ["1", "3", "null"],
    "data.seed": ["0", "7"],
    "data.template": ["auto", "raw"],
    "data.history": ["baseline", "own"],
    "data.max_prompt_tokens": ["null", "64"],
    "decoding.max_new_tokens": ["1", "16"],
    "decoding.temperature": ["0", "0.7", "1"],
    "decoding.top_k": ["null", "5"],
    "decoding.top_p": ["null", "0.9", "1"],
    "decoding.seed": ["0", "3"],
    "measure.repeats": ["1", "3"],
    "measure.warmup": ["0", "2"],
    "measure.mode": ["paired", "aa"],
    "measure.power": ["auto", "off"],
    "measure.trace": ["true", "false"],
    "engine.threads": ["null", "1"],
    "engine.attention": ["sdpa", "eager"],
    "engine.timeout_seconds": ["5", "0.5"],
    "allow_mixed": ["true"],
    "device_lock": ["off", "wait", "refuse"],
    "sweep.name": ["null", "x1"],
}
BY_KIND: dict[Any, list[str]] = {
    int: [*WORDS, *ODD, "1.5", "-1", "true", "''"],
    float: [*(word for word in WORDS if word != "1e"), *ODD, "-0.5", "''", "true"],
    bool: [*(word for word in WORDS if word != "_"), *ODD, "2", "1.5", "''"],
    str: [*ODD],
}


def kinds() -> Iterator[tuple[str, list[str]]]:
    """By option of the schema, values that it must refuse."""
    hints = typing.get_type_hints(RunConfig)
    sections = {"": RunConfig} | {f"{name}.": kind for name, kind in hints.items() if hasattr(kind, "__dataclass_fields__")}
    for prefix, section in sections.items():
        for name, kind in typing.get_type_hints(section).items():
            if list in (typing.get_origin(one) for one in (kind, *typing.get_args(kind))):
                continue  # a list of texts takes numbers as texts
            of = [k for k in (typing.get_args(kind) or (kind,)) if k in BY_KIND]
            if not of or prefix + name in ("method_name", "baseline_name"):
                continue
            nullable = type(None) in typing.get_args(kind)
            values = [*BY_KIND[of[0]], *([] if nullable else ["null"])]
            yield prefix + name, values


BAD = dict(kinds())
ENUMS = ("data.source", "data.template", "data.history", "measure.mode", "measure.power", "engine.attention", "device_lock")
for _name in (*ENUMS, "pair.target_dtype", "pair.draft_dtype", "pair.target_device", "pair.draft_device", "pair.draft_errors"):
    BAD[_name] = [*BAD[_name], *WORDS, *NUMBERS, "''"]


def once(real: Any) -> Any:
    """A loader that reads files: each model's and each set's once, whatever else is said of it."""
    made = dict[str, Any]()

    def load(*given: Any) -> Any:
        key = repr([getattr(one, "path", one) if isinstance(one, ModelSpec) else one for one in given])
        if key not in made:
            made[key] = real(*given)
        return made[key]

    return load


class Fresh:
    """A repository whose files come as copies: what is merged takes their nodes for its own, and changes them."""

    def __init__(self, repository: Any):
        self._repository = repository

    def __getattr__(self, name: str) -> Any:
        return getattr(self._repository, name)

    def load_config(self, config_path: str) -> Any:
        return copy.deepcopy(self._repository.load_config(config_path))


def composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra makes the same things anew for each command line, twice: what it has parsed and merged it finds again here.

    Values are kept by the text of an option, lists of files by the groups that were chosen, what was merged by these lists.
    Options of Hydra's own go its own way.
    """
    from hydra._internal import config_loader_impl as loading
    from hydra.core.override_parser.overrides_parser import OverridesParser

    create, merge = loading.create_defaults_list, loading.ConfigLoaderImpl._compose_config_from_defaults_list
    lists, merged, groups, repositories = dict[Any, Any](), dict[str, bytes](), dict[str, bool](), list[Any]()
    open_repository = loading.CachingConfigRepository

    def caching(repository: Any) -> Any:
        if not repositories:
            repositories.append(open_repository(repository))
        return repositories[0]

    def is_group(repo: Any, override: Any) -> bool:
        name = override.key_or_group
        if name not in groups:
            groups[name] = repo.group_exists(name)
        return groups[name] and not isinstance(override.value(), dict)

    def create_defaults_list(repo: Any, config_name: str, overrides_list: list[Any], **how: Any) -> Any:
        if any(override.is_hydra_override() or override.is_sweep_override() for override in overrides_list):
            return create(repo, config_name, overrides_list, **how)
        chosen = [override for override in overrides_list if is_group(repo, override)]
        key = (config_name, *how.values(), *sorted(override.input_line for override in chosen))
        if key not in lists:
            try:
                lists[key] = create(repo, config_name, chosen, **how)
            except Exception as error:
                lists[key] = error
        if isinstance(lists[key], Exception):
            raise lists[key].with_traceback(None)
        return dataclasses.replace(lists[key], config_overrides=[o for o in overrides_list if not is_group(repo, o)])

    def compose_from(self: Any, defaults: list[Any], repo: Any) -> Any:
        key = repr(defaults)
        if key not in merged:
            merged[key] = pickle.dumps(merge(self, defaults=defaults, repo=Fresh(repo)))
        return pickle.loads(merged[key])

    monkeypatch.setattr(loading, "CachingConfigRepository", caching)
    monkeypatch.setattr(loading, "create_defaults_list", create_defaults_list)
    monkeypatch.setattr(loading.ConfigLoaderImpl, "_compose_config_from_defaults_list", compose_from)
    monkeypatch.setattr(OverridesParser, "parse_rule", functools.lru_cache(None)(OverridesParser.parse_rule))
    cli.register()
    monkeypatch.setattr(cli, "register", lambda: None)


class Door:
    """`python -m specbench` in this process, as far as it goes before a folder exists."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fast: bool = False):
        from specbench import data
        from specbench.pair import load
        from specbench.run import prepare

        self.monkeypatch, self.capsys, self.prepared = monkeypatch, capsys, 0
        if fast:
            composed_once(monkeypatch)
            monkeypatch.setattr(data, "load", once(data.load))
        for name in ("load_tokenizer", "abilities"):
            kept = once(getattr(load, name))
            for module in (load, prepare):
                monkeypatch.setattr(module, name, kept)
        monkeypatch.setitem(sys.modules, "specbench.run.run", types.SimpleNamespace(run=self.run))
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        monkeypatch.delenv("SPECBENCH_DATA", raising=False)

    def run(self, config: RunConfig) -> dict[str, Any]:
        from specbench.run.prepare import prepare

        validate(config)
        prepare(config)
        self.prepared += 1
        return {"status": "success", "run_folder": "runs/x"}

    def __call__(self, arguments: list[str]) -> tuple[int, str]:
        self.monkeypatch.setattr(sys, "argv", ["specbench", *arguments])
        try:
            status = cli.main()
        except SystemExit as left:
            raise AssertionError(f"{arguments}: it left with SystemExit({left.code})") from left
        return status, self.capsys.readouterr().err


def drawn(draw: random.Random) -> tuple[list[str], list[str]]:
    """A command line, and what of it must be refused."""
    good = [f"{key}={draw.choice(GOOD[key])}" for key in draw.sample(sorted(GOOD), draw.randrange(4))]
    bad: list[str] = []
    for _ in range(draw.choice([0, 1, 1, 1, 2])):
        kind = draw.random()
        if kind < 0.6:
            key = draw.choice(sorted(BAD))
            bad.append(f"{draw.choice(['', '', '', '++'])}{key}={draw.choice(BAD[key])}")
        elif kind < 0.8:
            key = draw.choice([*sorted(BAD), *sorted(GOOD)])
            bad.append(f"{key}={draw.choice(UNREAD if key in BAD and set(BAD[key]) <= {*ODD, 'null'} else BROKEN)}")
        else:
            bad.append(draw.choice(UNKNOWN))
    said = {option.lstrip("+~").partition("=")[0] for option in bad}
    line = [option for option in good if option.partition("=")[0] not in said] + bad
    draw.shuffle(line)
    keys = {option.lstrip("+~").partition("=")[0] for option in line}
    builtin = [option for option in BUILTIN if option.partition("=")[0] not in keys]
    return [*builtin, *line, *([] if any("data.source" in option for option in line) else ["data.source=standin"])], bad


def check(door: Door, number: int) -> bool:
    """One command line; returns whether it was accepted."""
    line, bad = drawn(random.Random(number))
    status, err = door(line)
    about = f"set {number}: {line}: status {status}: {err}"
    assert "Traceback" not in err and "HYDRA_FULL_ERROR" not in err, about
    assert status in (0, 2), about
    assert (status == 2) >= bool(bad), f"nonsense was accepted: {about}"
    if status == 2:
        said = [text for text in err.splitlines() if text.startswith("specbench: ")]
        assert said and len(err.splitlines()) <= len(said) + 1, about
        keys = {option.lstrip("+~").partition("=")[0] for option in line}
        named = any(key.partition("@")[0] in said[-1] or key.rpartition(".")[2] in said[-1] for key in keys if key)
        assert named or any(option in said[-1] for option in line), about
    return status == 0


@pytest.mark.parametrize(
    "numbers",
    [range(8), pytest.param(range(8, 400), marks=pytest.mark.slow), pytest.param(range(400, 10_000), marks=pytest.mark.deep)],
    ids=len,
)
def test_no_command_line_makes_a_traceback(
    numbers: range, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Ten thousand of them, a few in every run of the tests."""
    monkeypatch.chdir(tmp_path)
    door = Door(monkeypatch, capsys, fast=len(numbers) > 8)
    accepted = sum(check(door, number) for number in numbers)
    assert 0 < accepted < 0.6 * len(numbers)
    assert door.prepared == accepted and not list(tmp_path.iterdir()), os.listdir(tmp_path)


def test_what_is_kept_knows_nothing_of_the_line_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    door = Door(monkeypatch, capsys, fast=True)
    assert door(["method=prompt_lookup", "data.history=inf"])[0] == 2
    assert door(["decoding.top_k=null", "data=mt_bench", "data.source=standin"])[0] == 0, "the default method's own options"


@pytest.mark.parametrize("wrong", ["silent", "a traceback", "another key", "accepted"])
def test_a_door_that_answers_wrongly_is_found(
    wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The twin."""
    answers = {
        "silent": (2, ""),
        "a traceback": (2, "Traceback"),
        "another key": (2, "specbench: runs: no"),
        "accepted": (0, ""),
    }
    number = next(n for n in range(100) if len(drawn(random.Random(n))[1]) == 1 and "=" in drawn(random.Random(n))[1][0])
    with pytest.raises(AssertionError):
        check(lambda line: answers[wrong], number)  # type: ignore[arg-type, return-value]

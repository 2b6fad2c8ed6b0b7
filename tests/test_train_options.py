"""Options of `python -m specbench.train`: one line that names key, value and remedy, before anything is loaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from specbench.config.options import ConfigError
from specbench.config.paths import CONF_DIR
from specbench.train import __main__ as door
from specbench.train.settings import KINDS, Settings, settings_from

NAMED = [  # what is typed behind part=draft, and what the line says of it
    ("part=nothing", "choose one of acceptance, acceptance_head, card"),
    ("train.lenght=3", "unknown option; did you mean train.length"),
    ("+train.lenght=3", "unknown option; did you mean train.length"),
    ("+parts.draft.heads=3", "unknown option; .*possible: .*parts.draft.attention_heads"),
    ("train=3", "is a section"),
    ("train.threads=[x", "cannot be read"),
    ("train.seed=text", "wrong type; possible: an integer"),
    ("train.resume=7", "wrong type; possible: true or false"),
    ("train.temperatures=[0,hot]", "'hot' of type 'str' could not be converted to Float"),
    ("train.shares=code", "wrong type; possible: a node"),
    ("parts.draft.rows=some", "wrong type; possible: an integer or null"),
    ("heads=three", "give a node"),
    ("train.seed=-1", "possible: an integer from 0 to"),
]
RANGES = [  # the same, checked behind the door
    ("train.threads=0", "possible: an integer from 1 to"),
    ("train.tokens=0", "possible: an integer from 1 to"),
    ("train.mantissa_bits=8", "possible: an integer from 1 to 7"),
    ("train.weight_bits=8", "possible: 16, 4"),
    ("train.long_share=1.5", "a share from 0 to 1"),
    ("train.matrix_lr=nan", "a positive number"),
    ("train.optimizer=sgd", "possible: muon, adam"),
    ("train.compile=yes", "possible: auto, on, off"),
    ("train.autocast=maybe", "possible: auto, true, false"),
    ("train.device=tpu", "possible: auto, cpu, cuda, cuda:<number>"),
    ("train.text=verse", "possible: corpus, chat"),
    ("train.temperatures=[]", "give one value"),
    ("train.temperatures=[-1]", "0 or a positive number"),
    ("train.shares.code=-1", "0 or a positive number"),
    ("train.shares.verse=1", "give shares of functions, code, docs"),
    ("parts.draft.kind=drift", "possible: target, refine, draft"),
    ("parts.draft.rows=0", "possible: an integer from 1 to"),
    ("pair.target_dtype=int8", "possible: auto, float32"),
    ("train.evaluation_folders=[/nowhere]", "no such folder"),
    ("parts.draft.length=40", "64 or more"),
    ("train.num_ids=100", "train.text=chat"),
    ("parts.draft.copy_layers=[0]", "parts.draft.copy_layers names 1 of the target"),
    ("parts.draft.init=new train.width=100", "take a multiple of 12"),
]


def shipped(*words: str) -> DictConfig:
    """What conf/train.yaml says, and these options."""
    said = yaml.safe_load((CONF_DIR / "train.yaml").read_text())
    made = OmegaConf.merge({name: said[name] for name in ("train", "parts")}, OmegaConf.from_dotlist(list(words)))
    assert isinstance(made, DictConfig)
    return made


def ended(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["specbench.train", *words])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    try:
        return door.in_one_line()
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


@pytest.mark.parametrize(("typed", "remedy"), NAMED, ids=[typed for typed, _ in NAMED])
def test_a_wrong_option_is_one_line_and_nothing_is_loaded(
    typed: str, remedy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(door, "run", lambda settings: pytest.fail(f"{typed} was taken"))
    assert ended([*([] if typed.startswith("part=") else ["part=draft"]), typed], monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(remedy, said), said
    assert typed.lstrip("+").partition("=")[0] in said


@pytest.mark.parametrize(("typed", "remedy"), RANGES, ids=[typed for typed, _ in RANGES])
def test_a_value_out_of_range_is_named(typed: str, remedy: str) -> None:
    words = typed.split(" ")
    with pytest.raises(ConfigError, match=remedy) as caught:
        settings_from(shipped("part=draft", *words))
    assert "\n" not in str(caught.value) and words[-1].partition("=")[0].split(".")[-1] in str(caught.value)


def test_what_is_shipped_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: every part of conf/train.yaml gets through, with the values that stand there."""
    done: list[Settings] = []
    monkeypatch.setattr(door, "run", lambda settings: done.append(settings) or {})
    monkeypatch.chdir(tmp_path)
    assert ended(["part=heads_chat", "train.text=chat", "method=medusa"], monkeypatch) == 0
    assert done[0].train.width == 144 and done[0].parts["chain_chat"].copy_layers == [0, 1, 29]
    assert done[0].method_name == "medusa" and done[0].heads is None
    chosen = [settings_from(shipped(f"part={part}", "train.text=chat")).chosen() for part in done[0].parts]
    assert {part.kind for part in chosen} == set(KINDS) == set(door.TRAININGS)

"""Going on with a run that was cut off: what is kept, what is done again, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_records import chain_rounds, failed, record_of
from run_folders import composed, finished_run

from specbench.config.compose import compose
from specbench.config.options import ConfigError
from specbench.config.schema import RunConfig, as_dict, from_dict
from specbench.measure.records.conditions import differences
from specbench.measure.records.events import SampleRecord
from specbench.measure.records.jsonfile import canonical_json
from specbench.measure.records.provenance import collect
from specbench.measure.records.store import TornLineWarning, read_rounds, read_run, read_samples
from specbench.run import resume

ROUNDS = chain_rounds([2, 1, 0, 2], drafted=4)
ARMS = ("method", "baseline")


def record(sample: str, turn: int, repeat: int, arm: str, **changes: Any) -> SampleRecord:
    return record_of((sample, turn, repeat, arm), ROUNDS, **changes)


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return {
        "pair": {"name": "builtin", "target": {"sha256": "aa"}, "draft": {"sha256": "bb"}},
        "data": {"name": "humaneval", "content_sha256": "cc", "sample_ids": ["a", "b"]},
        "folders": {"method.heads": "hh"},
        "warnings": [],
        "provenance": collect(["specbench"]),
    }


TURNS = {"a": [0, 1], "b": [0]}
NAMES = ("speculative", "autoregressive", "humaneval")


def config_for(folder: Path, **changes: Any) -> RunConfig:
    return dataclasses.replace(composed("method=speculative"), run_folder=str(folder), **changes)


def cut_off(folder: Path, facts: dict[str, Any], records: Sequence[SampleRecord], config: RunConfig | None = None) -> None:
    """A run of which only these records were written."""
    with resume.open_run(config or config_for(folder), NAMES, facts, TURNS) as opened:
        opened.store.write_run(opened.warmup_facts({"method": {"threads": 2}, "baseline": {"threads": 1}}))
        for one in records:
            opened.store.append(one, ROUNDS if one.error is None else [])


def goes_on(folder: Path, facts: dict[str, Any], config: RunConfig | None = None) -> resume.Opened:
    with resume.open_run(config or config_for(folder), NAMES, facts, TURNS) as opened:
        return opened


# ------------------------------------------------------------------------------------------------ what is kept
def test_finished_conversations_are_kept_and_the_torn_rest_is_not(tmp_path: Path, facts: dict[str, Any]) -> None:
    cut_off(tmp_path, facts, [record("b", 0, 0, arm) for arm in ARMS] + [record("a", 0, 0, "method")])
    before = (tmp_path / "samples.jsonl").read_bytes().splitlines()[:2]
    for name in ("samples.jsonl", "rounds.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write('{"sample_id":"a","turn":0,"rep')
    opened = goes_on(tmp_path, facts)
    assert opened.session == 1
    assert set(opened.finished) == {("b", 0, 0, "method"), ("b", 0, 0, "baseline")}
    assert opened.threads == {"method": 2, "baseline": 1}, "the first session's choice, not a new one"
    assert (tmp_path / "samples.jsonl").read_bytes().splitlines() == before, "what is kept is untouched"
    assert set(read_rounds(tmp_path)) == set(opened.finished)
    run = read_run(tmp_path)
    (session,) = run["sessions"]
    assert (session["session"], session["num_kept"], session["num_redone"], session["changed"]) == (1, 2, 1, [])
    assert run["status"] == "started"
    assert run["warnings"] == ["measured in 2 sessions: the run was continued (see `session` in samples.jsonl)"]


def test_a_torn_line_is_tolerated_by_readers_too(tmp_path: Path, facts: dict[str, Any]) -> None:
    cut_off(tmp_path, facts, [record("b", 0, 0, "method")])
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"sample')
    with pytest.warns(TornLineWarning):
        assert len(read_samples(tmp_path)) == 1


def keys(*records: SampleRecord, history: str = "own") -> set[tuple[str, int, int, str]]:
    return resume.finished_keys(records, TURNS, history)


def test_a_conversation_is_whole_or_not_there() -> None:
    first, second = record("a", 0, 1, "method"), record("a", 1, 1, "method")
    assert keys(first) == set()
    assert keys(first, second) == {first.key, second.key}
    assert keys(second) == set()


def test_one_arm_may_be_finished_alone() -> None:
    mine = record("b", 0, 0, "method")
    assert keys(mine, record("a", 0, 0, "baseline")) == {mine.key}


def test_a_failure_is_tried_again_and_a_long_prompt_is_not() -> None:
    assert keys(failed(("b", 0, 0, "method"))) == set()
    long = failed(("b", 0, 0, "method"), reason="prompt_too_long", error=None)
    assert keys(long) == {long.key}


def test_a_prompt_that_is_too_long_ends_both_arms_conversations() -> None:
    long = failed(("a", 0, 0, "method"), reason="prompt_too_long", error=None)
    other = record("a", 0, 0, "baseline")
    assert keys(long, other) == {long.key, other.key}
    assert keys(long) == {long.key}


def test_answers_that_others_rest_on_are_not_replaced_alone() -> None:
    mine = [record("a", turn, 0, "method") for turn in (0, 1)]
    theirs = [record("a", turn, 0, "baseline") for turn in (0, 1)]
    assert keys(*mine, theirs[0], history="baseline") == set(), "its second turn's prompt holds the baseline's first answer"
    assert keys(*mine, theirs[0], history="own") == {one.key for one in mine}
    assert len(keys(*mine, *theirs, history="baseline")) == 4
    later = [record("a", turn, 1, "method") for turn in (0, 1)]
    assert len(keys(*mine, *theirs, *later, history="baseline")) == 6


def test_what_keeps_state_from_prompt_to_prompt_is_done_again_from_the_first() -> None:
    first = [record("a", turn, 0, "method") for turn in (0, 1)] + [record("b", 0, 0, "method")]
    cut, other = record("b", 0, 1, "method"), record("b", 0, 1, "baseline")
    records = [*first, cut, other]
    assert keys(*records) == {one.key for one in records}
    assert resume.finished_keys(records, TURNS, "own", whole=["method"]) == {one.key for one in first}, (
        "and the other arm with it"
    )


# ------------------------------------------------------------------------------------------------ what is refused
def test_another_configuration_is_refused_by_option(tmp_path: Path, facts: dict[str, Any]) -> None:
    cut_off(tmp_path, facts, [])
    other = config_for(tmp_path)
    other.decoding.max_new_tokens = 64
    with pytest.raises(ConfigError, match=r"decoding\.max_new_tokens=64: .* was measured with 128"):
        goes_on(tmp_path, facts, other)
    goes_on(tmp_path, facts)  # the twin


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("pair", {"draft": {"sha256": "b2"}}, r"pair\.draft\.sha256='b2': .* was measured with 'bb'"),
        ("data", {"content_sha256": "c2"}, r"data\.content_sha256='c2'"),
        ("data", {"sample_ids": ["b", "a"]}, r"data\.sample_ids"),
        ("folders", {"method.heads": "h2"}, r"^method\.heads='h2': .* was measured with 'hh'"),
    ],
)
def test_other_models_and_data_are_refused_always(
    tmp_path: Path, facts: dict[str, Any], part: str, change: dict[str, Any], message: str
) -> None:
    cut_off(tmp_path, facts, [])
    with pytest.raises(ConfigError, match=message):
        goes_on(tmp_path, {**facts, part: {**facts[part], **change}}, config_for(tmp_path, allow_mixed=True))


def changed_conditions(facts: dict[str, Any]) -> dict[str, Any]:
    provenance = json.loads(json.dumps(facts["provenance"]))
    provenance["packages"]["versions"]["torch"] = "9.9"
    provenance["git"]["commit"] = "0" * 40
    return {**facts, "provenance": {**provenance, "conditions_hash": "another"}}


def test_other_conditions_are_refused_by_name(tmp_path: Path, facts: dict[str, Any]) -> None:
    cut_off(tmp_path, facts, [record("b", 0, 0, "method")])
    with pytest.raises(ConfigError, match=r"git commit: .*, now 0{12}\.\.\.; package\.torch: .*, now 9\.9"):
        goes_on(tmp_path, changed_conditions(facts))
    assert len(read_samples(tmp_path)) == 1
    assert "sessions" not in read_run(tmp_path), "a refused session leaves no trace"


def test_mixed_conditions_are_said_where_they_are_allowed(tmp_path: Path, facts: dict[str, Any]) -> None:
    cut_off(tmp_path, facts, [record("b", 0, 0, "method")])
    goes_on(tmp_path, changed_conditions(facts), config_for(tmp_path, allow_mixed=True))
    run = read_run(tmp_path)
    assert any(note.startswith("mixed conditions") and "package.torch" in note for note in run["warnings"])
    assert run["provenance"]["conditions_hash"] == facts["provenance"]["conditions_hash"], "the first session's stay"
    assert run["sessions"][0]["conditions_hash"] == "another"


def test_conditions_that_differ_without_a_name_differ(facts: dict[str, Any]) -> None:
    provenance = facts["provenance"]
    assert differences(provenance, provenance) == []
    assert differences({**provenance, "conditions_hash": "another"}, provenance)


def test_a_folder_in_use_is_refused(tmp_path: Path, facts: dict[str, Any]) -> None:
    with (
        resume.open_run(config_for(tmp_path), NAMES, facts, TURNS),
        pytest.raises(ConfigError, match="another process is at work"),
        resume.open_run(config_for(tmp_path), NAMES, facts, TURNS),
    ):
        pass


def test_what_is_no_run_is_refused(tmp_path: Path, facts: dict[str, Any]) -> None:
    config = dataclasses.replace(composed("method=speculative"), resume=str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"resume=.*nothing.*is .* a run folder"):
        goes_on(tmp_path, facts, config)
    assert not (tmp_path / "nothing").exists()


# ------------------------------------------------------------------------------------------------ the option
def test_resume_alone_takes_the_runs_own_options(tmp_path: Path) -> None:
    stored = compose(["method=speculative", "method.draft_length=7", "data.limit=3", "decoding.seed=5"])
    folder = finished_run(tmp_path, stored)
    typed = [f"resume={folder}", "device_lock=off"]
    adopted = resume.adopt(compose(typed), typed)
    assert as_dict(adopted) == {**as_dict(stored), "resume": str(folder)}
    assert adopted.device_lock == "off"
    again = [*typed, "method=speculative", "data=humaneval", "data.limit=3"]
    assert as_dict(resume.adopt(compose(again), again)) == as_dict(adopted)
    patient = [*typed, "engine.timeout_seconds=300"]
    assert resume.adopt(compose(patient), patient).engine.timeout_seconds == 300.0 != adopted.engine.timeout_seconds


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("method=amusd", "method='amusd': .* was started with 'speculative'"),
        ("data.limit=4", r"data\.limit=4: .* was started with 3"),
        ("method.draft_length=2", r"method\.draft_length=2: .* was started with 7"),
        ("pair=qwen3_8b_0.6b", "pair='qwen3_8b_0.6b': .* was started with 'builtin'"),
    ],
)
def test_resume_with_other_options_is_refused(tmp_path: Path, option: str, message: str) -> None:
    folder = finished_run(tmp_path, composed("method=speculative", "method.draft_length=7", "data.limit=3"))
    typed = [f"resume={folder}", "method=speculative", option]
    if option.startswith("pair="):
        typed.append("pair.draft_device=cpu")
    with pytest.raises(ConfigError, match=message):
        resume.adopt(compose(typed), typed)


def test_a_finished_run_has_nothing_left(tmp_path: Path) -> None:
    stored = composed("method=speculative")
    folder = finished_run(tmp_path, stored)
    summary = resume.finished(dataclasses.replace(stored, resume=str(folder)))
    assert summary is not None
    assert summary["status"] == "success"
    (folder / "summary.json").unlink()
    assert resume.finished(dataclasses.replace(stored, resume=str(folder))) is None


def test_every_option_survives_the_way_to_the_file_and_back() -> None:
    config = composed("method=amusd", "data.categories=[a,b]", "decoding.top_p=0.9", "engine.threads=1", "runs_dir=elsewhere")
    assert from_dict(json.loads(json.dumps(as_dict(config)))) == dataclasses.replace(config, track={}, sweep=RunConfig().sweep)
    for stored in ({"decoding": {"top_q": 1}}, {"decodings": {}}):
        with pytest.raises(ConfigError, match="no such option in this version"):
            from_dict(stored)


def test_how_a_run_is_kept_is_no_part_of_what_is_measured() -> None:
    plain = composed("method=speculative")
    kept = composed("method=speculative", "track=wandb", "device_lock=off", "sweep.name=x", "run_folder=y", "launcher=isolated")
    assert as_dict(plain) == as_dict(kept)


@pytest.mark.parametrize("written", ["now", "by a version that hashed it"])
def test_a_run_that_hung_is_continued_with_more_patience(tmp_path: Path, written: str, facts: dict[str, Any]) -> None:
    config = config_for(tmp_path)
    config.engine.timeout_seconds = 5.0
    cut_off(tmp_path, facts, [], config)
    if written != "now":
        whole = {key: value for key, value in as_dict(config).items() if key not in ("runs_dir", "resume")}
        older = {**read_run(tmp_path), "config_hash": hashlib.sha256(canonical_json(whole).encode()).hexdigest()}
        assert older["config_hash"] != read_run(tmp_path)["config_hash"]
        (tmp_path / "run.json").write_text(json.dumps(older))
    for seconds in (5.0, 300.0):
        config.engine.timeout_seconds = seconds
        goes_on(tmp_path, facts, config)
    config.engine.threads = 1
    with pytest.raises(ConfigError, match=r"engine\.threads=1: .* was measured with None"):
        goes_on(tmp_path, facts, config)

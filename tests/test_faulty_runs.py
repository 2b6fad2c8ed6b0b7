"""Runs with methods that raise, lie, hang or leave: the error names hook and method, and nothing that was finished is lost."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import faulty_methods
import pytest
import tiny
import torch
from faulty_methods import FailsIn, Forges, Misjudges, Misreports
from run_folders import BUILTIN
from test_run import AR, configured, only_folder
from test_run import models_loaded_once as models_loaded_once

from specbench.engine.backends import captures, fixed
from specbench.engine.backends.fixed import Capture
from specbench.engine.sampling import NO_LAW, SamplingLaw
from specbench.measure.records.store import read_run, read_samples
from specbench.measure.warnings import UNUSABLE, level_of
from specbench.method import Method, Outcome, Request
from specbench.methods.chains.autoregressive import Autoregressive
from specbench.methods.chains.speculative import Speculative
from specbench.processes.placement import Placement
from specbench.run.arms import Arm, clock_warnings
from specbench.run.hooks import MethodError, Watchdog
from specbench.run.run import run

IN_A_SAMPLE = [
    *("drafter.announce", "drafter.begin", "drafter.propose", "drafter.observe"),
    *("stop.begin", "stop.budget", "stop.goes_on", "stop.learn", "rule.judge", "rule.coins"),
    *("adapter.begin", "adapter.learn", "schedule.run", "method.decode"),
]
BEFORE = [
    *("method.open", "drafter.open", "schedule.open", "adapter.open", "adapter.adopt", "adapter.attach"),
    *("method.facts", "drafter.facts", "schedule.facts", "adapter.facts", "method.pids", "schedule.pids"),
]
AFTER = [
    *("method.close", "drafter.close", "schedule.close", "adapter.close"),
    *("method.memory_bytes", "drafter.memory_bytes", "schedule.memory_bytes"),
]


def some(hooks: list[str], *default: str) -> list[Any]:
    """All hooks, those not in `default` in the deep tests alone."""
    return [hook if hook in default else pytest.param(hook, marks=pytest.mark.deep) for hook in hooks]


def faulty(kind: str, **options: Any) -> dict[str, Any]:
    return {"_target_": f"faulty_methods.{kind}", **options}


def run_with(folder: Path, node: dict[str, Any], **changes: Any) -> Any:
    config = configured(folder, AR, **{"measure__warmup": 0, "decoding__max_new_tokens": 8, **changes})
    config.method, config.method_name, config.allow_targets = node, "faulty", ["faulty_methods"]
    return run(config)


@pytest.fixture(scope="module")
def bare() -> Any:
    return tiny.bare_pair(24)


def arm_of(method: Method, models: Any, law: SamplingLaw | None = None, **options: Any) -> tuple[Arm, Any]:
    around = tiny.runtime(*models, law)
    arm = Arm("method", tiny.opened(method, around), "cpu", Placement((), 1), **options)
    around.alive = arm.watchdog.alive
    return arm, tiny.request(around, tiny.prompt(6, vocab_size=24))


def error_of(method: Method, models: Any, law: SamplingLaw | None = None) -> str:
    """What the record of its sample says, whose numbers must be none."""
    arm, asked = arm_of(method, models, law)
    record, rounds = arm.run(asked, repeat=0, order=0, category=None)
    assert record.finish_reason == "error" and not rounds and record.output_ids == () and record.decode_seconds is None
    assert record.error is not None and "\n" not in record.error
    return record.error


# ------------------------------------------------------------------------------------------------------------ in a sample
@pytest.mark.parametrize("how", ["raises", "exits"])
@pytest.mark.parametrize("hook", IN_A_SAMPLE)
def test_a_hook_that_raises_fails_its_sample_by_name(bare: Any, hook: str, how: str) -> None:
    arm, asked = arm_of(FailsIn(hook=hook, how=how, after=0), bare)
    record, rounds = arm.run(asked, repeat=0, order=0, category=None)
    part, name = hook.split(".")
    assert record.finish_reason == "error" and not rounds
    said = "KeyError: 'what the plugin forgot'" if how == "raises" else "SystemExit: 0"
    owner = "FaultyMethod" if part == "method" else "FailsIn"
    # The schedule asks the drafter, the drafter its stop: both are named.
    called = "ModelDraft.propose > Chain.grow > " if hook == "stop.goes_on" else ""
    where = f"(in {called}Faulty{part.title()}.{name} > {how} of faulty_methods.{owner}; faulty_methods.py, line "
    assert (record.error or "").startswith(f"{said} {where}")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("out of range", "id 1000000 was drafted: the target's are 0 to 23"),
        ("negative", "id -1 was drafted"),
        ("too many", "nodes and riders were proposed: the drafter's max_nodes is 6"),
        ("too deep", "deep was proposed where "),
    ],
)
def test_a_proposal_that_breaks_its_promise_is_refused(bare: Any, what: str, said: str) -> None:
    assert said in error_of(Forges(what=what), bare)


def test_a_draft_without_its_laws_is_refused(bare: Any) -> None:
    assert "draft's distributions" in error_of(Forges(what="no law", rule="ratio"), bare, SamplingLaw(1.0))


@pytest.mark.parametrize(
    ("what", "said"), [("another path", "path [7] is none"), ("other tokens", "-5"), ("too many tokens", "tokens")]
)
def test_a_verdict_that_is_none_is_refused(bare: Any, what: str, said: str) -> None:
    error = error_of(Misjudges(what=what), bare)
    assert "ValueError: the verdict's" in error and said in error


@pytest.mark.parametrize("what", faulty_methods.OUTCOMES)
def test_an_outcome_that_is_not_so_is_refused(bare: Any, what: str) -> None:
    said = {"lost rounds": "num_emitted = sum over rounds", "no reason": "finish_reason is 'bored'", "no outcome": "NoneType"}
    error = error_of(Misreports(what=what), bare)
    assert said.get(what, "the output") in error and "of faulty_methods.Misreports" in error


class Hurries(Speculative):
    """Its clocks run at a tenth of the time, or at ten times it."""

    factor = 0.1

    def decode(self, request: Request) -> Outcome:
        said = super().decode(request)
        times = ("t_start", "t_end", "draft_seconds", "verify_seconds", "wait_seconds", "learn_seconds")
        rounds = [replace(r, **{name: self.factor * getattr(r, name) for name in times}) for r in said.rounds]
        seconds = {name: self.factor * getattr(said, name) for name in ("prefill_seconds", "decode_seconds")}
        return replace(said, rounds=rounds, **seconds)


def test_a_clock_that_leaves_time_out_is_told(bare: Any) -> None:
    for method in (Speculative(draft_length=3), Hurries(draft_length=3)):
        arm, asked = arm_of(method, bare)
        record, _ = arm.run(asked, repeat=0, order=0, category=None)
        assert record.error is None
        told = clock_warnings([arm])
        assert bool(told) == isinstance(method, Hurries) and all(level_of(text) == UNUSABLE for text in told)
    method.factor = 10.0
    assert "its clocks say more than the" in error_of(method, bare)


@pytest.mark.parametrize("counted", [True, False])
def test_making_programs_is_nobodys_clock(bare: Any, counted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling and recording fall between a sample's call and its clock; a method that only waits there is told."""

    def slow(step: Any) -> Any:
        time.sleep(0.3)
        return step

    monkeypatch.setitem(captures.CAPTURES, "slow", Capture(slow, at_once=True))
    if not counted:
        monkeypatch.setattr(fixed, "made_for", lambda seconds: None)
    arm, asked = arm_of(Speculative(draft_length=3), [replace(model, fixed="slow") for model in bare])
    for _ in range(2):
        record, _ = arm.run(asked, repeat=0, order=0, category=None)
        assert record.error is None
    assert bool(clock_warnings([arm])) != counted


def test_an_honest_method_is_refused_nothing(bare: Any) -> None:
    """The twin: the same method without a fault, and the one whose fault comes later."""
    for method in (Speculative(draft_length=3), FailsIn(hook="drafter.propose", after=10**6)):
        arm, asked = arm_of(method, bare)
        record, rounds = arm.run(asked, repeat=0, order=0, category=None)
        assert record.error is None and len(record.output_ids) == 24 and rounds


# ----------------------------------------------------------------------------------------------------------- NaN and hanging
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("whose", ["target", "draft"])
def test_logits_that_are_no_numbers_fail_the_sample(whose: str, value: float, temperature: float) -> None:
    """One such value in one row of the head is enough; under matching and under the ratio rule."""
    target, draft = tiny.bare_pair(24)
    broken: Any = (target if whose == "target" else draft).module
    with torch.no_grad():
        broken.head[:, 5] = value
    if value == math.inf:  # inf times a mixed sign is NaN, or infinity where all agree
        broken.head[1:, 5] = 0.0
    rules = [None] if temperature == 0 else [None, "ratio"]
    for rule in rules:
        said = error_of(Speculative(draft_length=3, rule=rule), (target, draft), SamplingLaw(temperature))
        assert NO_LAW in said and ("ModelDraft.propose" in said) == (whose == "draft")
    if whose == "draft" and temperature == 0:
        assert NO_LAW in error_of(Speculative(shape="dynamic"), (target, draft))
    if whose == "target":
        assert NO_LAW in error_of(Autoregressive(), (target, None), SamplingLaw(temperature))


@pytest.mark.parametrize("how", ["hangs", "spins"])
def test_a_hook_that_does_not_come_back_ends_the_run_by_name(bare: Any, how: str) -> None:
    """Whether it sleeps or computes in a loop that lets no error out."""
    arm, asked = arm_of(FailsIn(hook="drafter.propose", how=how, after=2), bare, watchdog=Watchdog(0.3))
    with pytest.raises(
        MethodError, match=r"no sign of life for 0\.3 s .* hangs in FaultyDrafter\.propose > .* of faulty_methods\."
    ):
        arm.run(asked, repeat=0, order=0, category=None)


def test_rounds_are_signs_of_life(bare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: a sample that takes longer than the limit, while no hook does."""
    monkeypatch.setitem(faulty_methods.ACTS, "dawdles", lambda: faulty_methods.time.sleep(0.1))
    arm, asked = arm_of(FailsIn(hook="drafter.propose", how="dawdles"), bare, watchdog=Watchdog(0.4))
    record, rounds = arm.run(asked, repeat=0, order=0, category=None)
    assert record.error is None and record.decode_seconds is not None and record.decode_seconds > 0.4 and len(rounds) > 4


# ------------------------------------------------------------------------------------------------------------- whole runs
@pytest.mark.parametrize("hook", some(BEFORE, "drafter.open"))
def test_a_hook_that_raises_before_the_first_sample_ends_the_run_by_name(tmp_path: Path, hook: str) -> None:
    part, name = hook.split(".")
    said = rf"of the method arm failed: KeyError: .* \(in Faulty{part.title()}\.{name} > raises of faulty_methods\."
    with pytest.raises(MethodError, match=said):
        run_with(tmp_path, faulty("FailsIn", hook=hook), data__limit=1)
    told = read_run(only_folder(tmp_path))
    assert told["status"] == "failed" and f"Faulty{part.title()}.{name}" in told["error"]


@pytest.mark.parametrize("how", ["raises", "exits"])
@pytest.mark.parametrize("hook", some(AFTER, "drafter.close", "method.memory_bytes"))
def test_a_hook_that_raises_after_the_last_sample_costs_no_number(tmp_path: Path, hook: str, how: str) -> None:
    if how == "exits" and hook != "drafter.close":
        pytest.skip("the same way: once is enough")
    summary = run_with(tmp_path, faulty("FailsIn", hook=hook, how=how), data__limit=1)
    assert summary["status"] == "success" and summary["lossless"]["verdict"] == "identical" and summary["num_failed"] == 0
    part, name = hook.split(".")
    assert any(f"(in Faulty{part.title()}.{name} > {how} of faulty_methods." in text for text in summary["warnings"])
    assert read_run(only_folder(tmp_path))["status"] == "success"


def test_a_method_that_fails_from_its_second_sample_on_keeps_the_first(tmp_path: Path) -> None:
    summary = run_with(tmp_path, faulty("FailsIn", hook="method.decode", how="exits", after=1), data__limit=3)
    records = read_samples(only_folder(tmp_path))
    assert summary["status"] == "success" and summary["num_failed"] == 2 and summary["speedup"]["num_prompts"] == 1
    assert [r.error is None for r in records if r.arm == "method"] == [True, False, False]
    assert all(r.error is None for r in records if r.arm == "baseline")


def test_a_run_that_is_continued_tries_its_failures_again(tmp_path: Path) -> None:
    """Each session decodes one sample more; a sweep (`run_folder=`) lets them be; when none is left nothing is done."""
    config = configured(tmp_path, AR, data__limit=3, measure__warmup=0, measure__trace=True, decoding__max_new_tokens=8)
    config.method, config.method_name = faulty("FailsIn", hook="method.decode", after=1), "faulty"
    config.allow_targets = ["faulty_methods"]
    assert run(config)["num_failed"] == 2
    folder = only_folder(tmp_path)
    first = [r for r in read_samples(folder) if r.error is None]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run(replace(config, run_folder=str(folder)))["num_failed"] == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    for left in (1, 0, 0):
        summary = run(replace(config, resume=str(folder)))
        records = read_samples(folder)
        assert summary["num_failed"] == left == len([r for r in records if r.error]), records
        assert summary["status"] == "success" == read_run(folder)["status"] and records[: len(first)] == first
        assert summary["speedup"]["num_prompts"] == 3 - left
    sessions = read_run(folder)["sessions"]
    failures = [[(f["sample_id"], f["arm"], f["session"]) for f in one["failures"]] for one in sessions]
    ids = [r.sample_id for r in records if r.arm == "baseline"]
    assert failures == [[(ids[1], "method", 0), (ids[2], "method", 0)], [(ids[2], "method", 1)]]
    assert all("KeyError: 'what the plugin forgot'" in f["error"] for one in sessions for f in one["failures"])
    assert (folder / "trace.json").read_bytes() != before["trace.json"]
    assert "measured in 3 sessions: the run was continued" in "\n".join(summary["warnings"])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["vanishes", "hangs"])
def test_a_process_that_is_gone_or_hangs_leaves_what_was_finished(tmp_path: Path, how: str) -> None:
    conf = tmp_path / "conf" / "method"
    conf.mkdir(parents=True)
    node = {"_target_": "faulty_methods.FailsIn", "hook": "drafter.propose", "how": how, "after": 14}
    (conf / "faulty.yaml").write_text(json.dumps(node))
    options = [
        *BUILTIN,
        *(
            "allow_targets=[faulty_methods]",
            "data=humaneval",
            "data.source=standin",
            "data.limit=4",
            f"runs_dir={tmp_path}/runs",
        ),
        *("decoding.max_new_tokens=12", "measure.warmup=0", "measure.repeats=1", "measure.power=off", "engine.threads=1"),
        *("engine.timeout_seconds=0.2", "pair.target_device=cpu", "pair.draft_device=cpu"),
    ]
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "specbench", "--config-dir", str(conf.parent), "method=faulty", *options]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=200, check=False)
    records = read_samples(only_folder(tmp_path))
    assert any(r.arm == "method" and r.error is None for r in records) and not any(r.error for r in records)
    told = read_run(only_folder(tmp_path))
    if how == "vanishes":  # nobody is left to say anything: the folder says that it was cut off, and can be continued
        assert told["status"] == "started" and not done.stdout
        return
    assert done.returncode == 1 and told["status"] == "failed"
    assert "hangs in FaultyDrafter.propose > hangs of faulty_methods.FailsIn" in done.stderr and "hangs in" in told["error"]
    assert "Traceback" not in done.stderr

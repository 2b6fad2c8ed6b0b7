"""The command that qualifies a device: its verdicts, its page, and what a part that fails costs the others."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from specbench.qualify import __main__ as command
from specbench.qualify import page, runs
from specbench.qualify.parts import identity, roofline, suite
from specbench.qualify.plan import FAILED, NOT_RUN, PARTS, PASSED, Task, result

CASES = {
    "passed": '<testcase classname="a" name="b"/>',
    "skipped": '<testcase classname="a" name="c"><skipped message="needs an accelerator"/></testcase>',
    "failed": '<testcase classname="a" name="d"><failure message="assert 1 == 2"/></testcase>',
    "error": '<testcase classname="a" name="e"><error message="no device"/></testcase>',
}


def test_shares_are_shares() -> None:
    assert sum(part.share for part in PARTS) == pytest.approx(1.0)
    assert [part.name for part in PARTS][:4] == ["machine", "suite", "identity", "energy"]


@pytest.mark.parametrize(
    ("cases", "status"),
    [
        (["passed", "skipped"], PASSED),
        (["skipped"], NOT_RUN),
        (["passed", "failed"], FAILED),
        (["error"], FAILED),
        ([], NOT_RUN),
    ],
)
def test_a_suite_passes_only_if_something_ran_and_nothing_failed(cases: list[str], status: str) -> None:
    report = ElementTree.fromstring(f"<testsuites><testsuite>{''.join(CASES[c] for c in cases)}</testsuite></testsuites>")
    found = suite.judge(report, "pytest ended")
    assert found["status"] == status
    assert ("assert 1 == 2" in json.dumps(found["tables"])) == ("failed" in cases)


def test_the_page_has_a_line_for_every_part_and_escapes_what_it_is_told(tmp_path: Path) -> None:
    row = ("a|b", "<script>", 0.12345, None)
    told = result(
        FAILED, "it | broke", tables=[{"columns": ("1", "2", "3", "4"), "rows": [row]}], notes=["two\nlines"], seconds=3.2
    )
    (tmp_path / "energy.json").write_text(json.dumps(told))
    text = page.render(page.read(tmp_path), "cpu")
    assert "| a\\|b | &lt;script> | 0.123 | - |" in text and "- two lines" in text
    assert "[Energy](#energy) | failed | it \\| broke | 3 |" in text
    assert text.count("| not run | not asked for | - |") == len(PARTS) - 1
    assert "CPU form" in text.splitlines()[0] and "**No GPU ran.**" in text.splitlines()[2]
    of_a_gpu = page.render(page.read(tmp_path), "cuda:0")
    assert "CPU form" not in of_a_gpu and "No GPU ran" not in of_a_gpu


@pytest.mark.parametrize(("status", "said"), [(-11, "ended with status -11"), (None, "no answer within")])
def test_a_part_whose_process_dies_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None, said: str
) -> None:
    begun = []

    def run_module(arguments: list[str], **_: Any) -> int | None:
        begun.append(arguments[2])
        if arguments[2] == "suite":
            return status
        (tmp_path / f"{arguments[2]}.part.json").write_text(json.dumps(result(PASSED, "fine")))
        return 0

    monkeypatch.setattr(command, "run_module", run_module)
    assert command.main(["--out", str(tmp_path), "--device", "cpu"]) == 1
    assert begun == [part.name for part in PARTS]
    assert said in json.loads((tmp_path / "suite.json").read_text())["verdict"]
    assert (tmp_path / page.PAGE).read_text().count("| passed | fine |") == len(PARTS) - 1


def test_a_part_that_raises_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "end_with_parent", lambda: None)
    monkeypatch.setattr(roofline, "run", lambda task: 1 / 0)
    assert command.main(["--part", "roofline", "--out", str(tmp_path), "--device", "cpu"]) == 1
    found = json.loads((tmp_path / "roofline.part.json").read_text())
    assert (found["status"], found["verdict"]) == (FAILED, "ZeroDivisionError: division by zero")
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--parts", "energy,lunch"], "--parts='lunch'"),
        (["--minutes", "0"], "--minutes"),
        (["--device", "cuda:99"], "--device"),
    ],
)
def test_wrong_options_are_one_line(options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--out", str(tmp_path / "out"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_backend_that_the_device_has_not_is_a_note() -> None:
    """Graphs on a CPU are refused as an option; here that is a fact beside the others."""
    pair, why = roofline.pair_of("shaped:tiny", "shaped:tiny:0.8", "cpu", "graph")
    assert pair.target.backend == "eager" and why is not None and "CUDA graphs need both models on CUDA devices" in why
    pair, why = roofline.pair_of("shaped:tiny", "shaped:tiny:0.8", "cpu", "compiled")
    assert pair.target.backend == "compiled" and why is None


def test_what_no_time_was_left_for_is_named_once(tmp_path: Path) -> None:
    found = identity.run(Task(tmp_path, "cpu", 1.0, lambda text: None))
    assert found["status"] == NOT_RUN and found["tables"][0]["rows"] == []
    assert "speculative in float32, speculative in bfloat16" in found["notes"][0]


def test_the_floor_is_bytes_over_bandwidth() -> None:
    seconds = {"autoregressive": [0.5, 0.25, 0.4], "generate": [0.8], "speculative": [0.1]}
    outputs = {"autoregressive": [1, 2], "generate": [1, 2], "speculative": [1, 3]}
    found = {"seconds": seconds, "outputs": outputs, "read_bytes": 100, "ours": ["autoregressive", "speculative"]}
    assert roofline.timed(found, 500.0) == [
        ("autoregressive", True, 400.0, 2.5, "yes", 0.5),
        ("generate", False, 800.0, 1.25, "yes", 0.25),
        ("speculative", True, 100.0, 10.0, "no", None),
    ]


def test_a_run_without_time_is_not_a_failed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task(tmp_path, "cpu", 100.0, lambda text: None)
    assert not runs.run_specbench(task, "a", ["method=x"], 1.0).reached
    monkeypatch.setattr(runs, "run_module", lambda *_, **__: None)
    assert not runs.run_specbench(task, "a", ["method=x"], 60.0).reached
    hung = runs.run_specbench(task, "a", ["method=x"], 200.0)
    assert hung.reached and not hung.identical and hung.why == "ended after 200 s: it said nothing"


def test_a_method_that_loses_its_ids_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of identity: a target that adds a token to what it says."""
    good = identity.identity_of("prompt_lookup", "float32", "cpu")
    assert [r.status for r in good] == ["pass", "pass"]
    decode = identity.Bench.decode

    def wrong(self: Any, law: Any, request: Any) -> Any:
        outcome = decode(self, law, request)
        outcome.output_ids[5] = (outcome.output_ids[5] + 1) % 4096
        return outcome

    monkeypatch.setattr(identity.Bench, "decode", wrong)
    bad = identity.identity_of("prompt_lookup", "float32", "cpu")
    assert [r.status for r in bad] == ["FAIL", "FAIL"]


@pytest.mark.slow
def test_the_cpu_form_comes_to_its_end(tmp_path: Path) -> None:
    """Every part that a CPU has, with real runs."""
    status = command.main(["--out", str(tmp_path), "--device", "cpu", "--minutes", "20"])
    found = page.read(tmp_path)
    assert status == 0, {name: facts["verdict"] for name, facts in found.items()}
    assert {name for name, facts in found.items() if facts["status"] == NOT_RUN} <= {"suite", "energy"}


def test_what_programs_hold_is_a_note() -> None:
    held = {"target_kv": 5, "target_programs": 2**20, "target_recordings": 3 * 2**20}
    said = "8b, graph holds beside weights and cache: target programs 1.0 MiB, target recordings 3.0 MiB"
    assert roofline.held_by_programs("8b, graph", held) == [said]
    assert roofline.held_by_programs("8b, eager", {"target_kv": 5}) == []

"""What a person sees: a bar only on a terminal, a table of at most 100 columns, colour only where it is wanted."""

import io
import re
from typing import Any

import pytest
from fake_records import failed, paired_run

from specbench.config.say import say
from specbench.measure import lossless, summary
from specbench.measure.attribution import RULE_WITH_IDLE, summarise
from specbench.measure.records.events import SampleRecord
from specbench.measure.sensors.energy import DeviceEnergy, total_of
from specbench.measure.sensors.energy_pass import Block, Work
from specbench.run import console

RUN = {
    "status": "success",
    "method": "amusd",
    "baseline": "autoregressive",
    "run_folder": "runs/2026-03-04/05-06-07_amusd_humaneval_0123abcd",
    "config": {
        "pair": {"target": "builtin:target", "draft": "builtin:draft"},
        "data": {"name": "humaneval", "source": "standin"},
    },
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def made(samples: list[SampleRecord], rounds: Any, run: dict[str, Any] = RUN, **options: Any) -> dict[str, Any]:
    report = lossless.compare(samples, claim="greedy-exact").as_dict()
    return summary.build_summary(run, samples, rounds, lossless=report, resamples=300, **options)


def test_plain_lines_one_per_sample() -> None:
    samples, _ = paired_run(2, 1)
    stream = io.StringIO()
    with console.Progress(len(samples) + 1, stream) as progress:
        for record in samples:
            progress.sample(record)
        progress.sample(failed(("s/9", 2, 0, "method"), error="Traceback ...\nRuntimeError: out of memory"))
        progress.note("measuring energy")
    lines = stream.getvalue().splitlines()
    assert len(lines) == len(samples) + 2 and lines[0].startswith("[1/5] s/0, ") and "tokens/s" in lines[0]
    assert lines[4] == "[5/5] s/9 turn 2, method, repeat 0: error: RuntimeError: out of memory"
    assert lines[5] == "measuring energy" and "\r" not in stream.getvalue()


def test_a_bar_on_a_terminal() -> None:
    samples, _ = paired_run(2, 1)
    stream = Terminal()
    with console.Progress(len(samples), stream) as progress:
        for record in samples:
            progress.sample(record)
        progress.note("a line that stays")
    assert "\r" in stream.getvalue() and "a line that stays\n" in stream.getvalue()


@pytest.mark.parametrize(("variable", "value", "stream", "expected"), [
    ("NO_COLOR", "", Terminal(), True),
    ("NO_COLOR", "1", Terminal(), False),
    ("TERM", "dumb", Terminal(), False),
    ("NO_COLOR", "", io.StringIO(), False),
    ("FORCE_COLOR", "1", io.StringIO(), False),
])  # fmt: skip
def test_colour(variable: str, value: str, stream: io.StringIO, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(variable, value)
    samples, rounds = paired_run(2, 1)
    table = console.final_table(made(samples, rounds, warnings=["[red]beware[/red] :smile:"]), stream)
    assert ("\033[33m" in table) is expected
    assert "[red]beware[/red] :smile:" in table, "a text is no markup"


def test_the_weightiest_warning_comes_first_and_each_is_whole() -> None:
    samples, rounds = paired_run(12, 3, noise=0.005)
    long = "stand-in data, not humaneval: 27 samples written for this project (" + "no file, " * 30 + ")"
    text = console.final_table(made(samples, rounds, warnings=["odd", long]))
    said = text[text.index("warnings: ") :]
    words = " ".join(said.split())
    assert words.startswith(f"warnings: unusable - {long}".replace("  ", " ")) and " doubtful - odd usual - only 12" in words
    assert said.count("- ") == 3 and max(map(len, text.splitlines())) <= console.WIDTH


HOSTILE = "\033]0;x\007\033[31m [red]beware[/red] \u202e :smile:\r\nnext"


def test_no_text_of_a_stranger_acts_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a sample's name and error, a model's and a data set's name, a folder, a warning and a line of `say`."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    shown = "\\x1b]0;x\\x07\\x1b[31m [red]beware[/red] \\u202e :smile:"
    samples, rounds = paired_run(2, 1)
    run = {**RUN, "method": HOSTILE, "run_folder": HOSTILE, "pair": {"target": HOSTILE, "draft": HOSTILE}}
    run["config"] = {**RUN["config"], "data": {"name": HOSTILE, "source": HOSTILE}}
    table = console.final_table(made(samples, rounds, run, warnings=[HOSTILE]), Terminal())
    pages = [table]
    for stream in (Terminal(), io.StringIO()):
        with console.Progress(2, stream) as progress:
            progress.sample(failed((HOSTILE, 0, 0, "method"), reason=HOSTILE, error=HOSTILE))
            progress.note(HOSTILE)
        pages.append(stream.getvalue())
    say(HOSTILE)
    pages.append(capsys.readouterr().err)
    for page in pages:
        own = re.sub(r"\x1b\[(\?25[hl]|2K|1A|[\d;]*m)", "", page)  # rich's own, for its bar
        assert "\x1b" not in own and "\x07" not in own and "\u202e" not in page
        assert shown in " ".join(own.split()).replace("\\ ", "\\")
    assert table.count("[red]beware[/red]") == 7


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    samples, _ = paired_run(2, 1)
    stream = Terminal()
    with console.Progress(len(samples), stream) as progress:
        progress.sample(samples[0])
    assert stream.getvalue().startswith("[1/4] s/0, ") and "\033" not in stream.getvalue()


def test_a_narrow_terminal_has_its_own_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    samples, rounds = paired_run(2, 1)
    s = made(samples, rounds)
    assert max(map(len, console.final_table(s, Terminal()).splitlines())) <= 60
    assert 60 < max(map(len, console.final_table(s, io.StringIO()).splitlines())) <= console.WIDTH


def test_the_table_says_what_it_must() -> None:
    samples, rounds = paired_run(12, 3, noise=0.005)
    s = made(samples, rounds, warnings=["the stand-in set is not HumanEval; " * 6])
    s["concurrent_seconds"] = {"draft": 1.5, "discarded_draft": 0.25, "idle": 0.5}
    s["counted"] = {"rollbacks_stage_0": 3}
    text = console.final_table(s)
    assert max(map(len, text.splitlines())) <= console.WIDTH and "\033" not in text
    for words in (
        "amusd against autoregressive: success", "decoding, method", "decoding, baseline", "tokens/s", "1.50",
        "95 % interval over prompts",
        "95 % interval over repeats", "emitted per round", "3.00 tokens", "50.0% of drafted positions", "100%, 100%, 0%, 0%",
        "rounds threw drafts away", "stale rounds", "identical: 36 of 36", "draft 30%, verify 60%, wait 0%, other 10%",
        "draft 1.50 s, discarded draft 0.25 s, idle 0.50 s", "rollbacks stage 0 3",
        "only 12 prompts", "energy", "not measured", RUN["run_folder"],
    ):  # fmt: skip
        assert words in text, words


def test_not_distinguishable_is_said_aloud() -> None:
    samples, rounds = paired_run(12, 3, speedup=1.0, noise=0.05)
    assert "NOT DISTINGUISHABLE" in console.final_table(made(samples, rounds))
    clear, clear_rounds = paired_run(12, 3, speedup=1.5, noise=0.01)
    assert "NOT DISTINGUISHABLE" not in console.final_table(made(clear, clear_rounds))


def test_runs_without_numbers_still_have_a_table() -> None:
    samples, rounds = paired_run(4, 2)
    own = [r for r in samples if r.arm == "baseline"]
    one_arm = made(own, {r.key: rounds[r.key] for r in own}, {**RUN, "method": "autoregressive"})
    text = console.final_table(one_arm)
    assert "none: the method is the baseline itself" in text and "not compared" in text
    nothing = console.final_table(made([failed(r.key, r.order) for r in samples], {}, {**RUN, "status": "failed"}))
    assert "failed" in nothing and "out of memory" in nothing
    long = console.final_table({**one_arm, "run_folder": "x" * 300})
    assert max(map(len, long.splitlines())) <= console.WIDTH and long.count("x") >= 300  # a long path is broken, never cut


def test_a_divergence_is_in_the_table() -> None:
    samples, rounds = paired_run(4, 1)
    s = made(samples, rounds)
    s["lossless"] |= {
        "verdict": "numerical_tie",
        "identical": 3,
        "first_divergence": {"sample_id": "s/1", "position": 17, "gap": 3e-5},
    }
    assert "numerical tie: 3 of 4 outputs identical" in console.final_table(s)
    assert "s/1 parts at token 17 (gap 3e-05)" in " ".join(console.final_table(s).split())


def test_energy_comes_with_its_attribution_rule() -> None:
    samples, rounds = paired_run(4, 1)
    idle = {"GPU-1": 10.0}
    blocks = [
        Block(
            arm,
            total_of([DeviceEnergy("GPU-1", "target", "nvml_counter", 600.0, 12.0)], 12.0),
            Work(100, {"target": {"verify": 6.0}}),
        )
        for arm in ("method", "baseline")
    ]
    text = " ".join(console.final_table(made(samples, rounds, energy=summarise(blocks, idle))).split())
    assert "6.000 J/token gross, baseline 6.000 (nvml_counter)" in text
    assert "verify 90%, prefill 0%, wait 10%" in text and RULE_WITH_IDLE in text


def test_acceptance_of_trees_is_said_to_be_by_depth() -> None:
    for of_nodes, words in ((0.2, "drafted positions, by depth"), (0.5, "drafted positions, 1")):
        samples, rounds = paired_run(4, 1)
        summary = made(samples, rounds) | {
            "acceptance_rate": 0.5,
            "acceptance_rate_of_nodes": of_nodes,
            "accepted_per_round": 1.0,
        }
        assert words in " ".join(console.final_table(summary, io.StringIO()).split())

"""Real processes: the same output as alone, whoever is slow; and whatever happens to one side, the other says so and goes.

Tests of this file start processes, each a few seconds; what can be proved without stands in test_amusd and test_mailbox.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import random_signals
import worker_programs
from preloaded import Started, fork_workers
from preloaded import command as command_line
from run_folders import BUILTIN
from worker_programs import ScriptedAmusd, Silent, request, runtime

import specbench.processes.silence as silence_module
import specbench.processes.worker as worker_module
from specbench.config.specs import PairSpec
from specbench.engine.sampling import SamplingLaw
from specbench.measure.records.store import read_samples
from specbench.methods.chains.autoregressive import Autoregressive
from specbench.pair.load import load_model
from specbench.parts.schedules.free_running.draft import DraftSide
from specbench.processes.mailbox import Mailbox, SharedSlot
from specbench.processes.placement import Placement
from specbench.processes.program import WorkerError
from specbench.processes.silence import Silence
from specbench.processes.worker import Worker
from specbench.run.resume import finished_keys


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> PairSpec:
    return worker_programs.save_tiny_pair(tmp_path_factory.mktemp("pair"))


def gone(pid: int | None, seconds: float = 10.0) -> bool:
    """Whether a process ends within that time (a zombie has ended)."""
    assert pid
    until = time.monotonic() + seconds
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(0.02)


def cpu_seconds(pid: int | None) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int | None) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def opened(pair: PairSpec, **settings: Any) -> Iterator[tuple[ScriptedAmusd, Autoregressive]]:
    """AMUSD and autoregressive decoding on one set of target weights."""
    options = settings.pop("options", {})
    shared = runtime(pair, **settings)
    method, baseline = ScriptedAmusd(**options), Autoregressive()
    try:
        method.open(shared)
        baseline.open(shared)
        yield method, baseline
    finally:
        method.close()


# ------------------------------------------------------------------------------------------------ the work itself
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_output_equals_the_targets_own_whoever_is_slow(
    pair: PairSpec, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: a sample that fails on the target's side, or is interrupted there, spoils none that follows."""
    fork_workers(monkeypatch)
    with opened(pair, temperature=temperature, trace=True) as (method, baseline):
        stale = accepted = 0
        for number in range(2):
            expected = baseline.decode(request(number)).output_ids
            for what in ("sample", "slow draft", "slow target"):
                outcome = method.decode(request(number, what))
                assert outcome.output_ids == expected, f"sample {number}, {what}"
                check_books(outcome)
                stale += sum(r.stale for r in outcome.rounds)
                accepted += sum(r.num_accepted for r in outcome.rounds)
        assert accepted > 20, "the draft is of no use: nothing was shown"

        expected = baseline.decode(request(7)).output_ids
        assert len(expected) > 10
        for what, error in (("target: fails", RuntimeError), ("target: interrupted", KeyboardInterrupt)):
            for _ in range(2):
                with pytest.raises(error):
                    method.decode(request(7, what))
            assert method.decode(request(7)).output_ids == expected
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(method.worker, "_answer", interrupt)  # Ctrl-C while the draft prepares itself
            method.decode(request(7))
        assert method.decode(request(7)).output_ids == expected


def test_a_worker_sleeps_beside_the_other_arm_and_does_not_grow(pair: PairSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory and mailbox stay as they are over many samples, and asking for their sizes disturbs nobody."""
    fork_workers(monkeypatch)
    with opened(pair) as (method, baseline):
        pid, expected = method.worker.pid, baseline.decode(request(7)).output_ids
        before = cpu_seconds(pid)
        until = time.monotonic() + 0.6
        while time.monotonic() < until:
            baseline.decode(request(1))
        assert cpu_seconds(pid) - before <= 0.02, "the draft's process is busy while the baseline is on the clock"
        until = time.monotonic() + 0.6
        while time.monotonic() < until:
            method.decode(request(1))
        assert cpu_seconds(pid) - before >= 0.05, "this clock would not have seen it"

        check_memory(method, 30)
        check_footprint(method, pair)
        assert method.decode(request(7)).output_ids == expected, "asking for its memory puts the worker out of step"
    assert "draft_weights" not in method.memory_bytes()
    assert gone(pid, 0.0), "a process is left"


def check_footprint(method: ScriptedAmusd, pair: PairSpec) -> None:
    """What the draft's process holds is counted there: its weights to the byte, its cache, its size."""
    assert pair.draft is not None
    weights = sum(p.numel() * p.element_size() for p in load_model(pair.draft).module.parameters())
    parts = method.memory_bytes()
    assert parts["draft_weights"] == weights and parts["draft_kv"] > 0 and parts["target_kv"] > 0 and parts["mailbox"] > 0
    assert parts["draft_process_peak_rss"] >= parts["draft_process_rss"] > 10_000_000
    assert "draft_device_peak" not in parts, "no allocator counts on a CPU"


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def check_books(outcome: Any) -> None:
    """Identities of the records; durations and spans lie within the sample and do not overlap."""
    rounds = outcome.rounds
    assert sum(r.num_emitted for r in rounds) + 1 == len(outcome.output_ids)
    assert all(0 <= r.num_accepted <= r.num_drafted for r in rounds)
    assert all(r.num_discarded == r.rollback_depth >= 0 for r in rounds)
    assert outcome.concurrent_seconds.keys() == {"draft", "discarded_draft", "idle"}
    ends = [0.0, *(r.t_end for r in rounds)]
    for r, end in zip(rounds, ends, strict=False):
        assert r.t_start == end and r.t_end >= r.t_start
        assert r.verify_seconds + r.wait_seconds + r.draft_seconds <= r.t_end - r.t_start + 1e-6
    last = 0.0
    for start, end, name in outcome.spans:
        assert name in ("draft", "discarded_draft", "idle")
        assert last - 1e-6 <= start <= end <= outcome.decode_seconds + 1e-6
        last = end
    if rounds:
        assert outcome.spans, "a trace was asked for"


def check_memory(method: ScriptedAmusd, count: int) -> None:
    """After some samples neither process grows any more, and the mailbox not at all."""
    for number in range(20):
        method.decode(request(number, max_new_tokens=8))
    pids, buffers = (os.getpid(), method.worker.pid), buffers_of(method)
    before = [resident_bytes(pid) for pid in pids]
    for number in range(count):
        method.decode(request(number, max_new_tokens=8))
    after = [resident_bytes(pid) for pid in pids]
    assert buffers_of(method) == buffers
    for a, b in zip(before, after, strict=True):
        assert b <= 1.01 * a, f"grew from {a} to {b} bytes over {count} samples"


def buffers_of(method: ScriptedAmusd) -> dict[str, int]:
    """What the method itself reserves: the processes' sizes are looked at from outside."""
    return {part: size for part, size in method.memory_bytes().items() if "rss" not in part}


@pytest.mark.slow
def test_five_hundred_samples_leave_memory_flat(pair: PairSpec) -> None:
    with opened(pair) as (method, _):
        check_memory(method, 500)


# ------------------------------------------------------------------------------------------------ the draft is lost
LOST = [  # what it does, engine.timeout_seconds, the words of the error
    ("draft: exit", 60.0, r"worker draft died with exit status 7"),
    ("draft: kill", 60.0, r"worker draft died of SIGKILL; the system may have run out of memory"),
    ("draft: memory", 60.0, r"worker draft: MemoryError: could not allocate 7 TiB"),
    ("draft: hang", 3.0, r"worker draft hangs and was killed while decoding a sample: no news .* for 3 s \(engine.timeout"),
    ("draft: stop within a message", 3.0, r"killed while decoding a sample: .*(within a message|no news .*) for [13] s"),
]


@pytest.mark.parametrize("start", [fork_workers, pytest.param(None, marks=pytest.mark.slow)], ids=["forked", "spawned"])
@pytest.mark.parametrize(("what", "timeout_seconds", "words"), LOST, ids=[case[0] for case in LOST])
def test_a_lost_draft_ends_the_run_in_its_own_words(
    pair: PairSpec,
    what: str,
    timeout_seconds: float,
    words: str,
    start: Callable[[pytest.MonkeyPatch], None] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It dies, is killed, runs out of memory, hangs: within seconds an error says which, and no process is left."""
    if start is not None:
        start(monkeypatch)
    monkeypatch.setattr(SharedSlot, "MIDWAY_SECONDS", 1.0)
    with opened(pair, timeout_seconds=timeout_seconds) as (method, _):
        pid = method.worker.pid
        begun = time.monotonic()
        with pytest.raises(WorkerError, match=words) as caught:
            method.decode(request(0, what))
        assert time.monotonic() - begun < 20.0
        if "Memory" in words:
            assert any("in misbehave" in note for note in caught.value.__notes__)
        with pytest.raises(WorkerError, match="worker draft"):
            method.decode(request(0))  # asked again it says so again, and at once
        assert time.monotonic() - begun < 25.0
    assert gone(pid, 0.0), "a process is left"


STAGES = ["starting its process", "loading its model", "opening its program", "preparing a sample", "decoding a sample"]
SILENT = [*((stage, "stopped") for stage in STAGES), ("loading its model", "hangs"), ("preparing a sample", "hangs")]


@pytest.mark.parametrize(("stage", "how"), SILENT)
def test_a_worker_that_falls_silent_is_killed_and_the_error_says_at_what(
    stage: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_workers(monkeypatch)
    program, pids = Silent(stage, how), []
    start = time.monotonic()
    with pytest.raises(WorkerError, match=rf"worker draft hangs and was killed while {stage}: no .* for 1 s \(engine.timeout"):
        worker = started(program, pids)
        worker.prepare(None)
        worker.go()
        worker.result()
    assert time.monotonic() - start < 20.0
    assert gone(pids[0], 1.0), "a process is left"


def started(program: Silent, pids: list[int]) -> Worker:
    """A worker whose process id is known even if it never comes to be ready."""

    class Known(Worker):
        def _answer(self) -> Any:
            pids.append(self.pid or 0)
            return super()._answer()

    return Known("draft", program.load, program, Placement((), 1), 1.0)


@pytest.mark.parametrize("stage", ["loading its model", "preparing a sample"])
def test_a_worker_that_takes_long_at_something_is_waited_for(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: no word for longer than the limit, and it computes. Preparing a sample it may compile."""
    fork_workers(monkeypatch)
    worker = started(Silent(stage, "computes"), [])
    worker.prepare(None)
    worker.close()


def test_a_worker_that_never_comes_to_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fork_workers(monkeypatch)
    monkeypatch.setattr(worker_module, "START_SECONDS", 0.5)
    with pytest.raises(WorkerError, match=r"while loading its model: it was not ready after 0\.5 s"):
        started(Silent("loading its model", "computes"), [])


def test_an_order_that_a_stopped_worker_does_not_take_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long prompt fills what the system keeps for the child: writing it is a wait like any other."""
    fork_workers(monkeypatch)
    worker = started(Silent("never", ""), [])
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(WorkerError, match=r"while preparing a sample: it took nothing for 1 s \(engine\.timeout_seconds\)"):
        worker.prepare(list(range(1_000_000)))
    assert gone(worker.pid, 1.0), "a process is left"


def test_whoever_was_stopped_itself_accuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence counts only while this process listens: a batch system stops all of a run for an hour, and goes on."""
    clock = [100.0]
    monkeypatch.setattr(silence_module, "now", lambda: clock[0])
    silence = Silence(10.0)

    def listen(seconds: float) -> bool:
        clock[0] += seconds
        return silence.too_long()

    assert not listen(3600.0)
    assert not any(listen(0.05) for _ in range(150))
    assert any(listen(0.05) for _ in range(60)), "ten seconds of listening"
    silence.broken()
    assert not listen(5.0)


def test_a_worker_that_cannot_load_says_why_at_once(pair: PairSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    assert pair.draft is not None
    fork_workers(monkeypatch)
    spec = replace(pair.draft, path=str(tmp_path / "nowhere"), name="nowhere")
    program = DraftSide(Mailbox.shared(8), SamplingLaw(), 4)
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"worker draft: ConfigError: pair\.draft='nowhere': "):
        Worker("draft", partial(load_model, spec), program, Placement((), 1), 60.0)
    assert time.monotonic() - start < 60.0
    assert not multiprocessing.active_children(), "a process is left"


def test_a_draft_that_fails_in_its_process_fails_its_sample_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specbench.config.compose import compose
    from specbench.run.run import run

    fork_workers(monkeypatch)
    config = compose([*BUILTIN, "method=amusd", "data=humaneval", "data.source=standin", "data.limit=3", "measure.warmup=0"])
    config.method = {**config.method, "_target_": "worker_programs.FailingAmusd"}
    config.allow_targets, config.runs_dir = ["worker_programs"], str(tmp_path)
    config.decoding.max_new_tokens, config.measure.repeats = 16, 1
    summary = run(config)
    (written,) = tmp_path.rglob("run.json")
    records = read_samples(written.parent)
    said = [record.error for record in records if record.arm == "method"]
    assert len(said) == 3 and said[1] is not None and said[0] is said[2] is None
    assert said[1].startswith("ProgramError: worker draft: RuntimeError: the draft stumbled over token 3 (")
    assert all(record.error is None for record in records if record.arm == "baseline")
    assert summary["status"] == "success" and summary["num_failed"] == 1 and summary["lossless"]["verdict"] == "identical"
    assert not multiprocessing.active_children(), "a process is left"


# ------------------------------------------------------------------------------------------------ the parent goes
def children(pid: int) -> list[int]:
    """Process ids of everything below a process."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found += [int(entry.parent.name), *children(int(entry.parent.name))]
    return found


def command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def wait_for(what: Any, seconds: float = 90.0) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it never came")


@pytest.mark.parametrize(
    ("what", "send", "status", "said"),
    [
        (signal.SIGTERM, os.kill, 143, "interrupted by SIGTERM"),  # a batch system's, to the run alone
        pytest.param(signal.SIGINT, os.killpg, 130, "interrupted", marks=pytest.mark.slow),  # a terminal's, to all of them
        pytest.param(signal.SIGHUP, os.killpg, 129, "interrupted by SIGHUP", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, os.killpg, 143, "interrupted by SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_ended_from_outside_is_interrupted_and_leaves_nobody(
    what: signal.Signals, send: Callable[[int, int], None], status: int, said: str, tmp_path: Path
) -> None:
    """What is finished stays, and is not done again."""
    line = ["engine=eager", "method=amusd", "data=humaneval", "data.source=standin", f"runs_dir={tmp_path}", "measure.warmup=0"]
    line += [*random_signals.save_pair(tmp_path), "data.limit=3"]
    line += ["decoding.max_new_tokens=24", "engine.threads=1", "measure.power=off", "measure.repeats=50"]
    run = Started(tmp_path / "said", command_line, line)
    try:
        wait_for(lambda: run.ended(0) is not None or [f for f in tmp_path.rglob("samples.jsonl") if f.stat().st_size])
        below = children(run.pid)
        assert any("spawn_main" in command(child) for child in below), f"no worker to interrupt: {run.err}"
        send(run.pid, what)
        ended = run.ended(30)
    finally:
        run.kill()
    assert ended == status, run.err
    assert "Traceback" not in run.err and run.err.splitlines()[-1] == f"specbench: {said}"
    (written,) = tmp_path.rglob("run.json")
    assert json.loads(written.read_text())["status"] == "interrupted"
    assert all(gone(child, 5.0) for child in below), "a process is left"
    records = read_samples(written.parent)
    assert records and not any(record.error for record in records)
    turns = {record.sample_id: [0] for record in records}
    assert {record.key for record in records} == finished_keys(records, turns, "baseline")


@pytest.mark.parametrize(
    ("how", "stopped"), [pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow), (signal.SIGKILL, True)]
)
def test_the_worker_goes_with_its_parent(pair: PairSpec, how: signal.Signals, stopped: bool, tmp_path: Path) -> None:
    parent = Started(tmp_path, worker_programs.decode_for_ever, str(Path(pair.target.path).parent))
    try:
        worker = int(wait_for(lambda: parent.out.strip()))
        assert not gone(worker, 0.2) and "spawn_main" in command(worker)
        if stopped:
            os.kill(worker, signal.SIGSTOP)
        os.kill(parent.pid, how)
        assert parent.ended(10) == -how
        assert gone(worker, 10.0), "the worker outlives its parent"
    finally:
        parent.kill()


def test_a_stopped_worker_goes_with_its_parent_even_while_it_is_importing(tmp_path: Path) -> None:
    parent = Started(tmp_path, worker_programs.start_for_ever)
    try:
        worker = int(wait_for(lambda: parent.out.strip()))
        assert not gone(worker, 0.2) and "spawn_main" in command(worker)
        os.kill(worker, signal.SIGSTOP)
        os.kill(parent.pid, signal.SIGKILL)
        assert parent.ended(10) == -signal.SIGKILL
        assert gone(worker, 10.0), "the worker outlives its parent"
    finally:
        parent.kill()

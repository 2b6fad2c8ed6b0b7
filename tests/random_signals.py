"""Random signals to a run, its worker and its whole group, at random times, as often as one likes.

    python tests/random_signals.py [--trials 100] [--seed 1] [--methods amusd pearl]

A trial starts a run of a tiny pair, or goes on with the one that the last trial cut off, and sends it one to three signals:
TERM, INT, KILL, or STOP, followed by CONT unless the worker alone is stopped for good. Then: the run ends within the time-out
and ten seconds more, no process is left, nothing in shared or temporary folders, the device's lock is free, the folder can be
read, and every record has the ids of the undisturbed run. Every second trial is followed by an undisturbed resume to the end.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import preloaded

from specbench.measure.records.store import TornLineWarning, find_run_folders, read_rounds, read_run, read_samples
from specbench.processes import locks

TIMEOUT_SECONDS = 5.0  # engine.timeout_seconds
MORE_SECONDS = 10.0  # that an ending may take beyond it
ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)


def processes_of(session: int) -> dict[int, str]:
    """Command lines of the living processes of a session, by process id."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):  # gone meanwhile
            continue
    return found


def names_in_memory() -> set[str]:
    """Names in shared memory that no living process has to do with: whoever made them is gone."""
    names = {path.name for path in Path("/dev/shm").glob("*")}
    used = set[str]()
    for maps in Path("/proc").glob("[0-9]*/maps") if names else ():
        with contextlib.suppress(OSError):
            used |= set(re.findall(r"/dev/shm/(\S+)", maps.read_text()))
    return names - used


def command_in(environment: dict[str, str], arguments: list[str]) -> None:
    """`python -m specbench` with these arguments and this environment."""
    os.environ.update(environment)
    tempfile.tempdir = None
    preloaded.command(arguments)


def save_pair(folder: Path) -> list[str]:
    """A target and a draft that agree often, with a tokenizer; returns the options that name them."""
    import tiny
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=1,
    )
    target = LlamaForCausalLM(config)
    tiny.save(folder / "target", target, tiny.tokenizer(128))
    tiny.save(folder / "draft", tiny.noisy_copy(target, 0.02), tiny.tokenizer(128))
    return [f"pair.target={folder / 'target'}", f"pair.draft={folder / 'draft'}"]


@dataclass
class Run:
    """One process of a run in a session, a temporary folder and a folder of locks of its own."""

    place: Path
    arguments: list[str]

    def __post_init__(self) -> None:
        self.temporary, self.locks = self.place / "tmp", self.place / "locks"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self.locks.mkdir(exist_ok=True)
        self.memory = names_in_memory()
        environment = {"TMPDIR": str(self.temporary), locks.FOLDER_VARIABLE: str(self.locks)}
        shutil.rmtree(self.place / "said", ignore_errors=True)
        self.process = preloaded.Started(self.place / "said", command_in, environment, self.arguments)

    def workers(self) -> list[int]:
        return [pid for pid, command in processes_of(self.process.pid).items() if "spawn_main" in command]

    def send(self, who: str, what: signal.Signals) -> None:
        runner = [self.process.pid] if self.status is None else []
        for pid in self.workers() if who == "worker" else runner:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, what) if who == "group" else os.kill(pid, what)

    def ended(self, seconds: float) -> bool:
        self.process.ended(seconds)
        return self.status is not None

    @property
    def status(self) -> int | None:
        return self.process.ended(0.0)

    def faults(self) -> list[str]:
        """What is left of a run that has ended, waited for as long as an ending may take."""
        until = time.monotonic() + MORE_SECONDS
        while (left := processes_of(self.process.pid)) and time.monotonic() < until:
            time.sleep(0.05)
        found = [f"a process is left: {command[:120]}" for command in left.values()]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if names := names_in_memory() - self.memory:
            time.sleep(1.0)  # other programs make names and take them back
            found += [f"left in memory: {name}" for name in names & names_in_memory()]
        found += [f"left in the temporary folder: {path}" for path in self.temporary.rglob("*")]
        try:
            with locks.hold(["cpu"], "refuse", folder=self.locks):
                pass
        except Exception as error:
            found.append(f"the lock: {error}")
        return found

    @property
    def text(self) -> str:
        return self.process.err


Ids = dict[tuple[str, int, int, str], tuple[int, ...]]


def ids_of(folder: Path) -> Ids:
    """The ids of all records, and nothing but finished records. Raises for a folder that cannot be read."""
    read_run(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TornLineWarning)
        records, rounds = read_samples(folder), read_rounds(folder)
    assert {record.key for record in records} <= set(rounds), "a sample without its rounds"
    assert all(record.error is None for record in records), [record.error for record in records]
    return {record.key: record.output_ids for record in records}


@dataclass
class Trials:
    """All trials of one method: its options, what the undisturbed run gave, and the folder that is not finished."""

    place: Path
    options: list[str]
    rng: random.Random
    expected: Ids = field(default_factory=dict)
    seconds: float = 0.0  # of the undisturbed run
    open: Path | None = None
    count: collections.Counter[str] = field(default_factory=collections.Counter)

    def reference(self) -> None:
        start = time.monotonic()
        run = self.start(self.place / "reference")
        assert run.ended(600) and run.status == 0, run.text
        self.seconds = time.monotonic() - start
        assert not (found := run.faults()), found
        (folder,) = find_run_folders(self.place / "reference")
        self.expected = ids_of(folder)

    def start(self, runs_dir: Path) -> Run:
        which = [f"resume={self.open}"] if self.open is not None else [*self.options, f"runs_dir={runs_dir}"]
        return Run(self.place / "process", which)

    def plan(self) -> list[tuple[float, str, signal.Signals]]:
        """(seconds after the start, to whom, what); the last one ends the run, unless it goes on by itself."""
        plan = []
        for _ in range(self.rng.randint(1, 3)):
            when = self.rng.uniform(0.0, self.seconds)
            who = self.rng.choice(["runner", "worker", "group"])
            what = self.rng.choice([signal.SIGSTOP, *ENDS])
            plan.append((when, who, what))
            # A worker that is stopped for good is the run's own affair.
            if what == signal.SIGSTOP and (who != "worker" or self.rng.random() < 0.5):
                plan.append((when + self.rng.uniform(0.1, 2.0 * TIMEOUT_SECONDS), who, signal.SIGCONT))
        return sorted(plan)

    def disturbed(self, number: int) -> list[str]:
        run, plan, begun = self.start(self.place / f"runs-{number}"), self.plan(), time.monotonic()
        for when, who, what in plan:
            run.ended(max(0.0, begun + when - time.monotonic()))
            run.send(who, what)
        run.send("group", signal.SIGCONT)  # nobody but the worker stays stopped ...
        if plan[-1][1:] == ("worker", signal.SIGSTOP):  # ... if it was the last that was meant
            run.send("worker", signal.SIGSTOP)
        limit = self.seconds * 2 + TIMEOUT_SECONDS + MORE_SECONDS
        faults = []
        if not run.ended(limit):
            faults.append(f"hangs: no end {limit:.0f} s after the last signal")
            os.killpg(run.process.pid, signal.SIGKILL)
            run.ended(30)
        faults += run.faults() + self.look(self.place / f"runs-{number}")
        self.count[f"exit status {run.status}"] += 1
        told = ", ".join(f"{when:.2f} s {what.name} to {who}" for when, who, what in plan)
        return [f"{fault} ({told}; exit status {run.status}; {run.text[-600:]!r})" for fault in faults]

    def look(self, runs_dir: Path) -> list[str]:
        """The folder of the run, if there is one yet: readable, its ids the undisturbed ones; whether it is finished."""
        if self.open is None:
            self.open = next(iter(find_run_folders(runs_dir)), None)
        if self.open is None:
            return []
        try:
            ids = ids_of(self.open)
            finished = read_run(self.open)["status"] == "success"
        except Exception as error:
            self.open = None
            return [f"the folder: {type(error).__name__}: {error}"]
        faults = [f"other ids for {key}" for key in ids if ids[key] != self.expected.get(key)]
        if finished:
            faults += [] if ids.keys() == self.expected.keys() else ["finished, and not all records are there"]
            self.open = None
            self.count["finished"] += 1
        self.count["records kept"] += 0 if finished else len(ids)
        return faults

    def resumed(self) -> list[str]:
        """An undisturbed session takes the run to its end."""
        if self.open is None:
            return []
        run = self.start(self.place)
        faults = [] if run.ended(self.seconds * 4 + 60) else ["the resumed run hangs"]
        if run.status != 0:
            faults.append(f"the resumed run failed: {run.text[-600:]!r}")
        faults += run.faults() + self.look(self.place)
        return [*faults, *(["resumed, and not finished"] if self.open is not None and not faults else [])]


def main(arguments: Any = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=["amusd", "pearl"])
    asked = parser.parse_args(arguments)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="specbench-signals-") as folder:
        pair = save_pair(Path(folder))
        for method in asked.methods:
            options = [
                *(f"method={method}", "data=humaneval", "data.source=standin", "data.limit=4", "measure.repeats=2"),
                *("measure.warmup=1", "measure.power=off", "decoding.max_new_tokens=32", "engine.threads=1", *pair),
                f"engine.timeout_seconds={TIMEOUT_SECONDS}",
                *(["method.draft_length=4"] if method == "pearl" else []),
            ]
            trials = Trials(Path(folder) / method, options, random.Random(f"{asked.seed}/{method}"))
            trials.reference()
            print(f"{method}: undisturbed {trials.seconds:.1f} s, {len(trials.expected)} records", flush=True)
            share = asked.trials // len(asked.methods) + (method == asked.methods[0]) * (asked.trials % len(asked.methods))
            for number in range(share):
                faults = trials.disturbed(number)
                if number % 2:
                    faults += trials.resumed()
                for fault in faults:
                    print(f"{method}, trial {number}: {fault}", flush=True)
                bad += bool(faults)
            faults = trials.resumed()
            bad += bool(faults)
            print(f"{method}: {share} trials, {dict(trials.count)}{f', at the end {faults}' if faults else ''}", flush=True)
    print(f"{bad} trials with faults")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

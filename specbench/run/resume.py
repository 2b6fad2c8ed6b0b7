"""Opens the folder of a run: a new one, or one that was cut off, with what is finished in it.

Kept are whole samples (all turns, of a repeat and arm); whole repeats, of both arms, where one keeps state from prompt to
prompt. A sample that was cut off between two turns is done again from its first, and so is a failure, whose error stays in the
session's entry in run.json; `resume=` does so with a run that ended in success too, a sweep lets its failures be. The warm-up
is redone, and every new record carries the number of the session that made it. Options, models and data must be the same, but
for `engine.timeout_seconds`; code, packages and machine too, unless `allow_mixed`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from specbench.config.options import ConfigError
from specbench.config.say import say
from specbench.config.schema import RunConfig, as_dict, from_dict
from specbench.measure.records import store as files
from specbench.measure.records.asked import asks_the_same, measured
from specbench.measure.records.conditions import differences, first_difference
from specbench.measure.records.events import SIMULATED, SampleRecord
from specbench.measure.records.jsonfile import cut_torn_line, dumps, read_lines, write_atomically
from specbench.measure.records.masking import mask_mapping
from specbench.measure.records.store import RunStore, SampleKey, StoreError
from specbench.processes.locks import hold_folder


@dataclass
class Opened:
    """A run folder open for writing. finished: records of earlier sessions, by key. threads: what they chose, by arm."""

    store: RunStore
    finished: dict[SampleKey, SampleRecord] = field(default_factory=dict)
    session: int = 0
    threads: dict[str, int] = field(default_factory=dict)

    def warmup_facts(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The warm-up's outcome as an entry of run.json: the first session's for the run, a later one's beside it."""
        run = self.store.run
        if self.session == 0 or "warmup" not in run:
            return {"warmup": dict(chosen)}
        sessions = [dict(entry) for entry in run["sessions"]]
        sessions[-1]["warmup"] = dict(chosen)
        return {"sessions": sessions}


def folder_of(config: RunConfig) -> tuple[Path, str] | None:
    """The folder that the configuration names, and the option that names it; None for a new folder by date."""
    if config.resume is not None:
        return Path(config.resume), "resume"
    return (Path(config.run_folder), "run_folder") if config.run_folder is not None else None


def finished(config: RunConfig) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do; None if there is something. Raises ConfigError for another's folder."""
    named = folder_of(config)
    if named is None or not files.is_run_folder(named[0]):
        return None
    folder, _ = named
    run = files.read_run(folder)
    check_config(config, run, folder)
    if run.get("status") != "success" or not (folder / files.SUMMARY_FILE).is_file():
        return None
    summary = files.read_summary(folder)
    if config.resume is not None and summary.get("num_failed"):
        return None
    return {**summary, "run_folder": str(folder)}


def adopt(config: RunConfig, typed: Sequence[str]) -> RunConfig:
    """`resume=RUN` alone is enough: the run's own options, with where and how this session runs from `config`.

    typed: the overrides of the command line; one that says something else than the run's options is refused by name.
    Raises ConfigError.
    """
    assert config.resume is not None
    folder = Path(config.resume)
    run = _read(folder, "resume")
    stored = from_dict(run["config"])
    for name in ("runs_dir", "resume", "allow_mixed", "device_lock", "track", "sweep"):
        setattr(stored, name, getattr(config, name))
    for override in typed:
        key = override.partition("=")[0].lstrip("+~")
        if key == "engine.timeout_seconds":  # of this session: what hung is given more time
            stored.engine.timeout_seconds = config.engine.timeout_seconds
        mine, theirs = _said(config, key), _said(stored, key)
        if mine != theirs:
            raise ConfigError(key, mine, f"{folder} was started with {theirs!r}; a run is continued with its own options")
    # A value that looked like a secret is masked in run.json: then only the command line can say it.
    return stored if asks_the_same(as_dict(stored), run) else config


_NAMES = {"method": "method_name", "method@baseline": "baseline_name", "data": "data.name", "pair": "pair.name"}


def _said(config: RunConfig, key: str) -> Any:
    """What a configuration holds under the key of an override; a choice of a file is compared by its name."""
    value: Any = config
    for part in _NAMES.get(key, key).split("."):
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
    # The choice of these groups leaves no name in the configuration: there is nothing to compare.
    return None if key in ("engine", "launcher", "experiment") or key.startswith("hydra") else value


def check_config(config: RunConfig, run: Mapping[str, Any], folder: Path) -> None:
    """Raises ConfigError naming the first option that differs from the stored run's, and for a run that was never measured."""
    if run.get("source") == SIMULATED:
        raise ConfigError("resume", str(folder), "was simulated (python -m specbench.sim): no measured sample belongs in it")
    mine = as_dict(config)
    if asks_the_same(mine, run):
        return
    shown, theirs = measured(mask_mapping(mine)), measured(run.get("config", {}))
    key, new, old = first_difference(shown, theirs) or ("config", "***", "another value that is masked")
    raise ConfigError(key, new, f"{folder} was measured with {old!r}; leave it out to go on, or start a new run")


def _read(folder: Path, key: str) -> dict[str, Any]:
    try:
        return files.read_run(folder)
    except StoreError as error:
        raise ConfigError(key, str(folder), f"cannot be continued: {error}") from error


@contextlib.contextmanager
def open_run(
    config: RunConfig,
    names: tuple[str, str, str],
    facts: Mapping[str, Any],
    turns: Mapping[str, Sequence[int]],
    whole: Collection[str] = (),
) -> Iterator[Opened]:
    """The run's folder, this process its only writer.

    names: method, baseline and data set as the run calls them. facts: `pair`, `data`, `provenance` and `warnings` for
    run.json. turns: by sample, the turns that are generated. whole: arms whose repeats are kept whole or not at all. Raises
    ConfigError for a folder that is no run's, another run's, or in use.
    """
    method, baseline, data_name = names
    named = folder_of(config)
    if named is None:
        store = RunStore.create(config.runs_dir, config.method_name, data_name, as_dict(config))
    else:
        folder, key = named
        if key == "resume":
            _read(folder, key)
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(hold_folder(store.folder if named is None else folder, "resume" if named is None else key))
        if named is not None and files.is_run_folder(folder):
            opened = _go_on(config, folder, key, facts, turns, whole)
        else:
            if named is not None:
                store = RunStore.begin(folder, method, data_name, as_dict(config))
            opened = Opened(store)
            store.write_run({"method": method, "baseline": baseline, **facts})
        stack.enter_context(opened.store)
        yield opened


def _go_on(
    config: RunConfig,
    folder: Path,
    key: str,
    facts: Mapping[str, Any],
    turns: Mapping[str, Sequence[int]],
    whole: Collection[str],
) -> Opened:
    run = _read(folder, key)
    check_config(config, run, folder)
    changed = check_conditions(run, facts, folder, config.allow_mixed)
    cut_torn_line(folder / files.SAMPLES_FILE)
    records = files.read_samples(folder)
    keep = finished_keys(records, turns, config.data.history, whole)
    failures = [record for record in records if record.finish_reason == "error"]
    sessions = [dict(entry) for entry in run.get("sessions", [])]
    session = len(sessions) + 1
    provenance = facts["provenance"]
    sessions.append(
        {
            "session": session,
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "argv": provenance["argv"],
            "conditions_hash": provenance["conditions_hash"],
            "changed": changed,
            "num_kept": len(keep),
            "num_redone": len(records) - len(keep),
            "failures": [
                {name: getattr(record, name) for name in (*files.KEY_FIELDS, "session", "error")} for record in failures
            ],
        }
    )
    notes = [note for note in run.get("warnings", facts["warnings"]) if not note.startswith("measured in ")]
    if keep:
        notes.append(f"measured in {session + 1} sessions: the run was continued (see `session` in samples.jsonl)")
    if changed:
        notes.append(f"mixed conditions (allow_mixed=true): {'; '.join(changed)}")
    started = {"status": "started", "ended_at": None, "error": None}
    missing = {name: value for name, value in facts.items() if name not in run}  # cut off before it was written
    # First what is going to be so, then the rest: a kill between them leaves a run that is unfinished and says why.
    RunStore(folder, run).write_run({**missing, **started, "sessions": sessions, "warnings": notes})
    for name in (files.POWER_FILE, files.SUMMARY_FILE, files.TRACE_FILE):  # they are of all records, and made again, whole
        (folder / name).unlink(missing_ok=True)
    drop_unfinished(folder, keep)
    store = RunStore.open(folder)
    again = f", {len(failures)} failures are tried again" if failures else ""
    say(f"{folder}: session {session} goes on, {len(keep)} records are kept{again}")
    chosen = {arm: entry.get("threads") for arm, entry in (run.get("warmup") or {}).items()}
    kept = {record.key: record for record in records if record.key in keep}
    return Opened(store, kept, session, {arm: threads for arm, threads in chosen.items() if threads})


def check_conditions(run: Mapping[str, Any], facts: Mapping[str, Any], folder: Path, allow_mixed: bool) -> list[str]:
    """Compare models, data and what options name (heads, a datastore), which may never differ, and code, packages and machine
    with the stored run's; returns what differs and is allowed to.

    Raises ConfigError naming the difference.
    """
    for part in ("pair", "data", "folders"):
        found = first_difference(facts[part], run[part]) if part in facts and part in run else None
        if found:
            key, new, old = found
            where = key if part == "folders" else f"{part}.{key}"
            raise ConfigError(where, new, f"{folder} was measured with {old!r}; it cannot be continued with another")
    stored = run.get("provenance")
    changed = differences(facts["provenance"], stored) if stored else []
    if changed and not allow_mixed:
        raise ConfigError(
            "allow_mixed",
            False,
            f"conditions changed since {folder} was started: {'; '.join(changed)}; start a new run, "
            "or allow_mixed=true goes on and says so",
        )
    return changed


def drop_unfinished(folder: Path, keep: Collection[SampleKey]) -> None:
    """Take out the records of samples that were cut off or failed: all but `keep`."""
    path = folder / files.SAMPLES_FILE
    rows = read_lines(path)
    kept = [row for row in rows if tuple(row[name] for name in files.KEY_FIELDS) in keep]
    if len(kept) < len(rows):
        write_atomically(path, "".join(dumps(row, separators=(",", ":")) + "\n" for row in kept))


def finished_keys(
    records: Sequence[SampleRecord], turns: Mapping[str, Sequence[int]], history: str, whole: Collection[str] = ()
) -> set[SampleKey]:
    """Keys of the records that belong to finished samples.

    A sample is finished when all its turns are there, or when it ended early because a prompt was too long for the pair
    (then the other arm's ended there too). A failure is not finished. With data.history=baseline or auto the later turns of
    repeat 0 rest on the baseline's answers: without those they are not finished either. A repeat in which an arm of `whole`,
    which keeps what it saw from prompt to prompt, lacks a sample is done again in all arms: what it had seen went with its
    process.
    """
    good = {record.key: record for record in records if record.finish_reason != "error"}
    too_long = {(r.sample_id, r.repeat): r.turn for r in good.values() if r.finish_reason == "prompt_too_long"}
    arms = {record.arm for record in records}
    groups = {(record.sample_id, record.repeat, record.arm) for record in records}

    def needed(sample_id: str, repeat: int) -> list[int]:
        last = too_long.get((sample_id, repeat))
        return [turn for turn in turns[sample_id] if last is None or turn <= last]

    done = {
        (sample, repeat, arm)
        for sample, repeat, arm in groups
        if all((sample, turn, repeat, arm) in good for turn in needed(sample, repeat))
    }
    if history in ("baseline", "auto") and "baseline" in arms:
        done = {
            (sample, repeat, arm)
            for sample, repeat, arm in done
            if repeat > 0 or len(needed(sample, repeat)) < 2 or (sample, 0, "baseline") in done
        }
    if whole:
        passed = {(repeat, arm) for _, repeat, arm in done if all((sample, repeat, arm) in done for sample in turns)}
        # The other arm goes with it: a repeat of which one arm was measured now and one then compares two hours of a machine.
        cut = {repeat for repeat in {one[1] for one in done} if any((repeat, arm) not in passed for arm in whole)}
        done = {one for one in done if one[1] not in cut}
    return {key for key, r in good.items() if (r.sample_id, r.repeat, r.arm) in done}

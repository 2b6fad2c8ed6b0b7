"""The run folder: atomic, append-only, readable after any kill, and strict about damage."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from fake_records import chain_rounds, failed, record_of

from specbench.measure.records import store
from specbench.measure.records.store import RunStore, StoreError, TornLineWarning, config_hash

CONFIG = {"pair": {"target": "a", "draft": "b"}, "decoding": {"temperature": 0.7}, "runs_dir": "runs", "resume": None}
KEY = ("HumanEval/0", 0, 0, "method")


def make(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path, "amusd", "humaneval", CONFIG)


def test_folder_name_and_first_state(tmp_path: Path) -> None:
    made = RunStore.create(tmp_path, "amusd", "org/my data", CONFIG, now=datetime(2026, 3, 4, 5, 6, 7))
    assert made.folder == tmp_path / "2026-03-04" / f"05-06-07_amusd_org-my-data_{config_hash(CONFIG)[:8]}"
    run = store.read_run(made.folder)  # readable from the first moment
    assert (run["status"], run["config"], run["config_hash"]) == ("started", CONFIG, config_hash(CONFIG))


def test_same_second_gets_another_folder(tmp_path: Path) -> None:
    now = datetime(2026, 3, 4, 5, 6, 7)
    folders = {RunStore.create(tmp_path, "m", "d", CONFIG, now=now).folder for _ in range(5)}
    assert len(folders) == 5
    assert store.find_run_folders(tmp_path) == sorted(folders)


def test_config_hash_is_stable_and_sees_what_matters() -> None:
    # Fixed for all time: folders, resume keys and sweeps rely on it. (sha256 of the canonical text.)
    assert config_hash({"b": 1, "a": [1.5, None, "é"]}) == config_hash({"a": [1.5, None, "é"], "b": 1})
    assert config_hash({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    assert config_hash(CONFIG) == config_hash({**CONFIG, "runs_dir": "elsewhere", "resume": "x"})
    assert config_hash(CONFIG) != config_hash({**CONFIG, "decoding": {"temperature": 0.8}})


def test_round_trip(tmp_path: Path) -> None:
    made = make(tmp_path)
    rounds = chain_rounds([2, 0, 4], 4)
    rounds[1] = dataclasses.replace(rounds[1], stale=True, phase="post", epoch=3)
    record = record_of(KEY, rounds, concurrent_seconds={"draft": 0.1}, counted={"hits": 2}, memory_peak_bytes=2**40)
    lost = failed(("HumanEval/1", 0, 0, "method"), 1)
    made.append(record, rounds)
    made.append_sample(lost)
    made.append_power([{"time_seconds": 0.1, "device": "GPU-1", "watts": np.float64(200)}])
    made.write_summary({"x": np.int64(3)})
    made.write_trace({"traceEvents": []})
    made.set_status("success", num_devices=1)
    made.close()
    assert store.read_samples(made.folder) == [record, lost]
    columns = store.read_rounds(made.folder)
    assert list(columns) == [KEY]
    assert store.rounds_from_columns(columns[KEY]) == rounds
    assert store.read_power(made.folder) == [{"time_seconds": 0.1, "device": "GPU-1", "watts": 200.0}]
    assert store.read_summary(made.folder) == {"x": 3}
    run = store.read_run(made.folder)
    assert (run["status"], run["num_devices"]) == ("success", 1) and run["ended_at"]
    assert len((made.folder / store.ROUNDS_FILE).read_text().splitlines()) == 1  # columnar: one line a sample


def test_torn_last_line_is_left_out_aloud(tmp_path: Path) -> None:
    made = make(tmp_path)
    for i in range(3):
        rounds = chain_rounds([1], 2)
        made.append(record_of((f"s/{i}", 0, 0, "method"), rounds), rounds)
    made.close()
    path = made.folder / store.SAMPLES_FILE
    whole = path.read_bytes()
    start = whole.rfind(b"\n", 0, -1) + 1
    for cut in range(start + 1, len(whole) - 1, 7):  # every place where a write can have stopped
        path.write_bytes(whole[:cut])
        with pytest.warns(TornLineWarning, match=r"samples\.jsonl:3"):
            assert [r.sample_id for r in store.read_samples(made.folder)] == ["s/0", "s/1"]
    path.write_bytes(whole[:-1])  # only the newline is missing: the record is whole
    assert len(store.read_samples(made.folder)) == 3


def test_damage_elsewhere_names_file_and_line(tmp_path: Path) -> None:
    made = make(tmp_path)
    rounds = chain_rounds([1], 2)
    for i in range(3):
        made.append(record_of((f"s/{i}", 0, 0, "method"), rounds), rounds)
    made.close()
    path = made.folder / store.SAMPLES_FILE
    lines = path.read_text().splitlines()
    lines[1] = lines[1][:40]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(StoreError, match=r"samples\.jsonl:2"):
        store.read_samples(made.folder)
    path.write_text("\n".join([lines[0], lines[2], lines[0]]) + "\n")
    with pytest.raises(StoreError, match=r"samples\.jsonl:3: .* already on line 1"):
        store.read_samples(made.folder)
    path.write_text("\n".join([lines[0], lines[2][:40]]) + "\n")  # a broken last line that has its end is no torn line
    with pytest.raises(StoreError, match=r"samples\.jsonl:2"):
        store.read_samples(made.folder)
    not_a_number = json.dumps({**json.loads(lines[2]), "decode_seconds": float("nan")})  # Python would read it
    path.write_text("\n".join([lines[0], not_a_number]) + "\n")
    with pytest.raises(StoreError, match=r"samples\.jsonl:2: NaN is no number of a run"):
        store.read_samples(made.folder)
    row = json.loads((made.folder / store.ROUNDS_FILE).read_text().splitlines()[0])
    row["t_end"].append(1.0)
    (made.folder / store.ROUNDS_FILE).write_text(json.dumps(row) + "\n")
    with pytest.raises(StoreError, match="unequal length"):
        store.read_rounds(made.folder)


def test_resume_cuts_the_torn_line_and_orphaned_rounds(tmp_path: Path) -> None:
    made = make(tmp_path)
    rounds = chain_rounds([1, 2], 2)
    made.append(record_of(("s/0", 0, 0, "method"), rounds), rounds)
    made.append_rounds("s/1", 0, 0, "method", rounds)  # killed before the sample's line ...
    made.close()
    with (made.folder / store.SAMPLES_FILE).open("a") as file:
        file.write('{"sample_id": "s/1", "tur')  # ... which was half written
    again = RunStore.open(made.folder)
    assert list(store.read_rounds(made.folder)) == [("s/0", 0, 0, "method")]
    again.append(record_of(("s/1", 0, 0, "method"), rounds), rounds)  # the same key may now be written
    again.close()
    assert [r.sample_id for r in store.read_samples(made.folder)] == ["s/0", "s/1"]
    assert len(store.read_rounds(made.folder)) == 2


def test_kill_leaves_a_readable_folder(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import itertools, sys
        from fake_records import chain_rounds, record_of
        from specbench.measure.records.store import RunStore
        made = RunStore.create(sys.argv[1], "amusd", "humaneval", {"a": 1})
        made.write_run({"provenance": {"python": "x"}})
        rounds = chain_rounds([1] * 50, 2)
        for i in itertools.count():
            made.append(record_of((f"s/{i}", 0, 0, "method"), rounds), rounds)
            print(i, flush=True)
        """
    )
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    code = f"import sys; sys.path[:0] = {path!r}\n{script}"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    finished = 0
    for line in process.stdout:
        finished = int(line)
        if finished >= 20:
            break
    process.send_signal(signal.SIGKILL)
    process.stdout.read()
    process.wait()
    (folder,) = store.find_run_folders(tmp_path)
    run = store.read_run(folder)
    assert run["status"] == "started" and run["provenance"] == {"python": "x"}
    store.RunStore.open(folder).close()
    samples = store.read_samples(folder)
    assert [r.sample_id for r in samples][: finished + 1] == [f"s/{i}" for i in range(finished + 1)]
    assert set(store.read_rounds(folder)) == {r.key for r in samples}


def test_failed_replacement_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(tmp_path)
    before = (made.folder / store.RUN_FILE).read_bytes()

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(store.WriteError, match=r"run\.json: cannot be written: no space left on device"):
        made.set_status("success")
    assert (made.folder / store.RUN_FILE).read_bytes() == before
    assert [path.name for path in made.folder.iterdir()] == [store.RUN_FILE]  # no temporary file left


def one_more(made: RunStore, number: int) -> None:
    rounds = chain_rounds([1], 2)
    made.append(record_of((f"s/{number}", 0, 0, "method"), rounds), rounds)


def test_a_full_disk_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    """As RLIMIT_FSIZE makes it: a line is written in part, and then no more."""
    made = make(tmp_path)
    number, before = 0, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(store.WriteError, match=r"jsonl: cannot be written: File too large; what was finished"):
            while number < 1000:
                one_more(made, number)
                number += 1
        made.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert number > 3
    again = RunStore.open(made.folder)
    assert [record.sample_id for record in store.read_samples(made.folder)] == [f"s/{i}" for i in range(number)]
    one_more(again, number)
    again.close()
    assert set(store.read_rounds(made.folder)) == {record.key for record in store.read_samples(made.folder)}


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_folder_that_goes_away_is_noticed_at_the_next_sample(tmp_path: Path, how: str) -> None:
    """The files are open: they would take lines for hours."""
    made = make(tmp_path)
    one_more(made, 0)
    if how == "removed":
        shutil.rmtree(made.folder)
    else:
        made.folder.rename(tmp_path / "elsewhere")
    if how == "replaced":
        shutil.copytree(tmp_path / "elsewhere", made.folder)
    with pytest.raises(store.WriteError, match=r"jsonl: cannot be written: ") as caught:
        one_more(made, 1)
    assert str(made.folder) in str(caught.value)
    made.close()


def test_where_no_folder_can_be_made_the_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(store.WriteError, match=r"file/.*: cannot be written: Not a directory"):
        make(tmp_path / "file")


def test_a_file_that_was_being_replaced_when_its_writer_died_leaves_no_rest(tmp_path: Path) -> None:
    made = make(tmp_path)
    (made.folder / ".run.json.abc.tmp").write_text("half")
    RunStore.open(made.folder).close()
    assert [path.name for path in made.folder.iterdir()] == [store.RUN_FILE]


def test_not_a_number_is_refused_with_its_path(tmp_path: Path) -> None:
    made = make(tmp_path)
    with pytest.raises(ValueError, match=r"seconds\.draft\.1"):
        made.write_summary({"seconds": {"draft": [0.0, float("nan")]}})
    assert not (made.folder / store.SUMMARY_FILE).exists()
    rounds = [dataclasses.replace(chain_rounds([1], 2)[0], wait_seconds=float("inf"))]
    with pytest.raises(ValueError, match="wait_seconds"):
        made.append_rounds(*KEY, rounds)
    made.close()
    assert store.read_rounds(made.folder) == {}


def test_what_older_folders_call_accepted_behind_the_end_is_cut(tmp_path: Path) -> None:
    made = make(tmp_path)
    first, last = chain_rounds([1, 4], 4)
    made.append(
        record_of(KEY, [first, last]), [first, dataclasses.replace(last, num_emitted=2, num_discarded=0, rollback_depth=0)]
    )
    made.close()
    read = store.read_rounds(made.folder)[KEY]
    columns = [read[name] for name in ("num_accepted", "num_emitted", "num_discarded", "rollback_depth")]
    assert columns == [[1, 2], [2, 2], [first.num_discarded, 2], [first.rollback_depth, 2]]


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="run folder"):
        store.read_run(tmp_path)
    (tmp_path / store.RUN_FILE).write_text('{"format_version": 99}')
    with pytest.raises(StoreError, match="99"):
        store.read_run(tmp_path)
    with pytest.raises(ValueError, match="status"):
        make(tmp_path / "runs").set_status("done")


def test_no_secret_reaches_a_file(tmp_path: Path) -> None:
    secret = "hf_" + "AbCdEfGhIj" * 3
    made = RunStore.create(tmp_path, "m", "d", {"track": {"api_key": "very-private"}, "x": f"see {secret}"})
    made.append_sample(failed(KEY, error=f"401 for https://user:very-private@host/x with {secret}"))
    made.set_status("failed", error=f"Authorization: Bearer {secret}")
    made.write_summary({"warnings": [f"token={secret}"]})
    made.close()
    text = "".join(path.read_text() for path in made.folder.iterdir())
    assert secret not in text and "very-private" not in text and "***" in text

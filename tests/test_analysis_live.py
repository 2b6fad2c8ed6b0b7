"""The page that follows a sweep: what it shows of jobs in every state, whom it answers, and what it survives."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from analysis_runs import write_run
from fake_records import paired_run
from sweeping import command_line, environment

from specbench.analysis.__main__ import main
from specbench.analysis.read.following import SILENT_SECONDS, Follower
from specbench.analysis.reports import live
from specbench.measure.records.store import RunStore

HOSTILE = "<script>alert(1)</script>\x1b[31m'\"&"


@contextmanager
def serving(root: Path) -> Iterator[live.Server]:
    with live.Server([root], port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: live.Server, path: str = "/", method: str = "GET", host: str | None = None) -> tuple[int, str, dict[str, str]]:
    server._made = (-live._FRESH_SECONDS, b"")  # what a reader gets who comes later
    connection = http.client.HTTPConnection("127.0.0.1", int(server.server_address[1]), timeout=10)
    try:
        connection.request(method, path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())
    finally:
        connection.close()


def begin(folder: Path, method: str = "speculative", num_lines: int = 0, **facts: Any) -> RunStore:
    folder.mkdir(parents=True)
    store = RunStore.begin(folder, method, "humaneval", {})
    samples, rounds = paired_run(3, 1)
    for record in samples[:num_lines]:
        store.append(record, rounds[record.key])
    store.write_run({"num_lines": len(samples), **facts})
    return store


def sweep(root: Path) -> Path:
    """Six jobs, one in each state but silent and unreadable, and one that failed before it had a folder."""
    made = root / "sweeps" / "some"
    made.mkdir(parents=True)
    done = write_run(root / "elsewhere")
    shutil.move(done, made / "job-done")
    begin(made / "job-running", num_lines=2).close()
    begin(made / "job-failed", method=HOSTILE).set_status("failed", error=f"ValueError: {HOSTILE}")
    begin(made / "job-interrupted").set_status("interrupted")
    jobs = [
        {"folder": f"gone/{name}", "overrides": ["data=humaneval", f"method={name}"], "error": error}
        for name, error in [(f"job-{s}", None) for s in ("done", "running", "failed", "interrupted", "waiting")]
        + [("job-early", "it never began")]
    ]
    record = {"sweep": f"some {HOSTILE}", "status": "started", "jobs": jobs}
    (made / "sweep_0123.json").write_text(json.dumps(record))
    return made


def test_a_sweep_is_shown_with_its_jobs_and_the_table_so_far(tmp_path: Path) -> None:
    made = sweep(tmp_path)
    with serving(tmp_path) as server:
        status, text, headers = ask(server)
        assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]
        for state in ("done", "running", "interrupted", "waiting"):
            assert f"1 {state}<" in text, state
        assert "2 failed<" in text and "it never began" in text and "method=job-running" in text
        assert "data=humaneval" not in text, "what all jobs share does not tell them apart"
        assert "2 of 6 samples" in text and re.search(r"tokens/s, \d+ s ago", text)
        row = text[text.index("The table so far") :]
        assert "method=job-done" in row and re.search(r"\d\.\d\d <span class=\"ci\">\[", row)
        assert "<script" not in text and "\x1b" not in text and text.count("&lt;script&gt;") >= 2
        assert re.search(r'<meta http-equiv="refresh" content="\d+">', text) and not re.search(r"(src|href)=", text)

        (made / "job-running" / "summary.json").write_text((made / "job-done" / "summary.json").read_text())
        (RunStore.open(made / "job-running")).set_status("success")
        assert "2 done<" in ask(server)[1] and "1 running<" not in ask(server)[1]


def test_a_job_that_was_left_out_has_ended_and_says_why(tmp_path: Path) -> None:
    made = sweep(tmp_path)
    record = json.loads((made / "sweep_0123.json").read_text())
    record["jobs"][4]["left_out"] = record["jobs"][0]["left_out"] = "no datastore there"  # waiting; and done before
    (made / "sweep_0123.json").write_text(json.dumps(record))
    found = Follower([tmp_path]).look()[0]
    assert found.counts == {"done": 1, "running": 1, "failed": 2, "interrupted": 1, "left out": 1} and found.num_ended == 4
    with serving(tmp_path) as server:
        text = ask(server)[1]
    assert "1 left out<" in text and "1 waiting<" not in text and text.count("no datastore there") == 1


def test_only_the_one_address_is_answered(tmp_path: Path) -> None:
    sweep(tmp_path)
    with serving(tmp_path) as server:
        port = server.server_address[1]
        assert server.server_address[0] == "127.0.0.1"
        for path in (
            "/sweeps",
            "/run.json",
            "/../../etc/passwd",
            "/%2e%2e/etc/passwd",
            "//evil/",
            "/sweeps/some/job-done/run.json",
        ):
            status, text, _ = ask(server, path)
            assert (status, text) == (404, "nothing here\n"), path
        assert ask(server, host=f"evil.example:{port}")[0] == 404, "a name of somebody else's that points here"
        assert ask(server, host=f"localhost:{port}")[0] == 200
        assert ask(server, "/?x=1")[0] == 200
        assert ask(server, method="HEAD")[:2] == (200, "")
        assert ask(server, method="POST")[0] == 501


def test_nothing_is_written_below_the_runs(tmp_path: Path) -> None:
    sweep(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with serving(tmp_path) as server:
        ask(server)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


DAMAGE: dict[str, bytes] = {
    "empty": b"",
    "cut": b'{"format_version": 2, "status": "star',
    "list": b"[1, 2]",
    "words": b'{"status": ["x"], "created_at": {}, "num_lines": "many", "method": 5, "data_name": null}',
    "huge": b'{"status": "success", "num_lines": 1' + b"0" * 400 + b"}",
    "deep": b'{"status": ' + b"[" * 100_000,
    "not text": b"\xff\xfe\x00",
    "nan": b'{"status": NaN}',
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_costs_its_own_row_alone(tmp_path: Path, name: str) -> None:
    made = sweep(tmp_path)
    for folder, file in (("job-failed", "run.json"), ("job-done", "summary.json"), ("job-running", "samples.jsonl")):
        (made / folder / file).write_bytes(DAMAGE[name])
    (made / "sweep_4567.json").write_bytes(DAMAGE[name])
    (made / "sweep_89ab.json").write_text(json.dumps({"jobs": [{"folder": 5, "overrides": "x"}, 7, {}], "sweep": {}}))
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "run.json").write_bytes(DAMAGE[name])
    with serving(tmp_path) as server:
        status, text, _ = ask(server)
    assert status == 200 and "1 interrupted<" in text and "1 running<" in text


def test_what_is_no_file_is_passed_over(tmp_path: Path) -> None:
    made = sweep(tmp_path)
    for file in (made / "job-done" / "summary.json", made / "job-running" / "samples.jsonl"):
        file.unlink()
        os.mkfifo(file)  # to open it would wait for ever
    (made / "job-failed" / "run.json").unlink()
    (made / "job-failed" / "run.json").mkdir()
    with serving(tmp_path) as server:
        assert ask(server)[0] == 200


def test_lines_are_counted_as_they_come_and_a_torn_one_waits(tmp_path: Path) -> None:
    store = begin(tmp_path / "job", num_lines=2)
    follower = Follower([tmp_path])
    (job,) = follower.look()[0].jobs
    assert (job.num_lines, job.num_planned, job.status) == (2, 6, "running")
    samples = tmp_path / "job" / "samples.jsonl"
    with samples.open("a") as file:
        file.write('{"sample_id": "ne')
    assert follower.look()[0].jobs[0].num_lines == 2
    with samples.open("a") as file:
        file.write('w", "arm": "method"}\n')
    (job,) = follower.look()[0].jobs
    assert job.num_lines == 3 and job.last["sample_id"] == "new"
    samples.write_text("")  # done anew
    assert follower.look()[0].jobs[0].num_lines == 0
    long_ago = time.time() - SILENT_SECONDS - 5
    for path in (tmp_path / "job" / "run.json", samples, tmp_path / "job"):
        os.utime(path, (long_ago, long_ago))
    assert follower.look()[0].jobs[0].status == "silent"
    store.close()


def test_wrong_arguments_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path)
    with serving(tmp_path) as server:
        port = str(server.server_address[1])
        for arguments, said in (
            ([root, "--serve", "--port", port], f"--port={port}"),
            ([root, "--serve", "--port", "99999"], "--port=99999"),
            ([root, "--serve", "--host", "no.such.host.invalid"], "--host=no.such.host.invalid"),
            ([root, "--serve", "--out", "x"], "--serve shows"),
            ([root, "--port", "1"], "add --serve"),
            ([str(tmp_path / "none"), "--serve"], "no such folder"),
        ):
            assert main(arguments) == 2
            assert said in capsys.readouterr().err, arguments


def find_chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def seen(chromium: str, address: str, folder: Path) -> str:
    """The page as a browser has it, scripts and all."""
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--window-size=1100,1000",
    ]
    line = [chromium, *flags, f"--user-data-dir={folder / 'browser'}", "--dump-dom", address]
    return subprocess.run(line, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason="needs Chromium")
def test_a_browser_follows_a_sweep_to_its_end(tmp_path: Path) -> None:
    chromium, runs = find_chromium(), tmp_path / "runs"
    assert chromium is not None
    runs.mkdir()
    page = subprocess.Popen(
        [sys.executable, "-m", "specbench.analysis", str(runs), "--serve", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    started = command_line(runs, "-m", "method=speculative,prompt_lookup", "data=humaneval,mt_bench", "sweep.name=watched")
    made = subprocess.Popen(started, env=environment(runs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert page.stdout is not None
        address = page.stdout.readline().split()[0]
        seen_states: set[str] = set()
        while made.poll() is None:
            text = seen(chromium, address, tmp_path)
            seen_states |= set(re.findall(r"<span class=\"\w+\">\d (\w+)</span>", text))
        assert made.returncode == 0
        assert {"running", "waiting", "done"} <= seen_states
        time.sleep(2)
        text = seen(chromium, address, tmp_path)
        assert "4 done" in text and "watched: success" in text and "The table so far" in text
        page.send_signal(signal.SIGINT)
        rest = page.communicate(timeout=30)[0]
        assert page.returncode == 0 and rest == "ended\n"
    finally:
        for process in (page, made):
            process.kill()
            process.wait()

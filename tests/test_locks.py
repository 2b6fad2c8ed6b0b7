"""One timing run per device: what two real processes see of each other, and what a killed one leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from specbench.config.options import ConfigError
from specbench.processes import locks

# Takes a device, says so, and gives it back when its stdin ends; then says who else was there.
HOLDER = """
import sys
from specbench.processes import locks
with locks.hold(sys.argv[2:], sys.argv[1]) as held:
    print("held", flush=True)
    sys.stdin.read()
    print(held.shared(), flush=True)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(locks.FOLDER_VARIABLE, str(tmp_path / "locks"))
    return tmp_path / "locks"


class Holder:
    def __init__(self, mode: str, *devices: str):
        command = [sys.executable, "-c", HOLDER, mode, *devices]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def has_it(self) -> bool:
        assert self.process.stdout is not None
        return self.process.stdout.readline() == "held\n"

    def says(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def leave(self) -> str:
        """Its last word."""
        return self.process.communicate(timeout=30)[0].strip()

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture
def holder() -> Iterator[type[Holder]]:
    made: list[Holder] = []

    class Kept(Holder):
        def __init__(self, mode: str, *devices: str):
            super().__init__(mode, *devices)
            made.append(self)

    yield Kept
    for one in made:
        if one.process.poll() is None:
            one.kill()


def test_a_second_run_is_refused_by_name(holder: type[Holder]) -> None:
    first = holder("wait", "cpu")
    assert first.has_it()
    with (
        pytest.raises(ConfigError, match=rf"device_lock='refuse'.*cpu \(process {first.process.pid} since"),
        locks.hold(["cpu"], "refuse"),
    ):
        pass
    assert first.leave() == "[]"
    with locks.hold(["cpu"], "refuse") as held:  # the twin: nobody is there any more
        assert held.shared() == []


def test_a_second_run_waits_and_says_for_whom(holder: type[Holder]) -> None:
    first = holder("wait", "cpu")
    assert first.has_it()
    second = holder("wait", "cpu")
    assert f"waiting for cpu: another run measures on it (process {first.process.pid}" in second.says()
    assert first.leave() == "[]"
    assert second.has_it()
    assert second.leave() == "[]", "it was never there at the same time"


def test_a_long_wait_is_said_again_in_other_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, said = iter([False] * 5 + [True]), list[str]()
    monkeypatch.setattr(locks, "_try", lambda _: next(answers))
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(locks.time, "monotonic", iter(range(0, 10_000, 45)).__next__)
    with locks.hold(["cpu"], "wait", said.append):
        pass
    assert [line.partition(" (")[0] for line in said[1:]] == [f"still waiting for cpu, {n} min by now" for n in (2, 4)]
    assert said[0].startswith("waiting for cpu: another run measures on it")


def test_a_killed_holder_leaves_nothing_behind(holder: type[Holder], folder: Path) -> None:
    first = holder("wait", "cpu")
    assert first.has_it()
    first.kill()
    assert (folder / "cpu.lock").stat().st_size > 0, "its name is still written there"
    with locks.hold(["cpu"], "refuse"):
        pass
    assert (folder / "cpu.lock").stat().st_size == 0


def test_different_devices_do_not_meet(holder: type[Holder]) -> None:
    first = holder("wait", "cuda:0")
    assert first.has_it()
    with locks.hold(["cuda:1", "cpu"], "refuse"):
        pass
    with pytest.raises(ConfigError), locks.hold(["cpu", "cuda:0"], "refuse"):
        pass


def test_two_runs_with_two_devices_in_opposite_order_both_end(holder: type[Holder]) -> None:
    pair = [holder("wait", "cpu", "cuda:0"), holder("wait", "cuda:0", "cpu")]
    for one in pair:
        assert one.process.stdin is not None
        one.process.stdin.close()
        one.process.stdin = None
    for one in pair:
        assert one.leave().startswith("held")


def test_measuring_beside_another_run_is_known_to_both(holder: type[Holder]) -> None:
    first = holder("wait", "cpu")
    assert first.has_it()
    with locks.hold(["cpu"], "off") as held:
        assert "cpu was in use by another run" in held.shared()[0]
    assert "another run measured on cpu at the same time" in first.leave(), "though it had ended before the first one did"


def test_two_that_take_no_lock_know_of_each_other(holder: type[Holder]) -> None:
    first = holder("off", "cpu")
    assert first.has_it()
    with locks.hold(["cpu"], "off") as held:
        assert held.shared()
    assert first.leave() != "[]"


def test_a_device_that_was_shared_before_is_not_shared_now(holder: type[Holder]) -> None:
    first = holder("off", "cpu")
    assert first.has_it()
    with locks.hold(["cpu"], "wait") as held:
        assert held.shared(), "the other one is still there"
    first.leave()
    with locks.hold(["cpu"], "wait") as held:
        assert held.shared() == []


def test_an_accelerator_is_locked_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda:0 of a process that sees the second device only is not cuda:0 of the host."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert locks.device_key("cuda:1") == "cuda-5"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert locks.device_key("cuda:0") == "cuda-5"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert locks.device_key("cuda:1") == "cuda-1"
    assert locks.device_key("cpu") == "cpu"


def test_what_is_written_holds_no_secret(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["specbench", "method=amusd", "method.api_key=abc123def456"])
    with locks.hold(["cpu"], "wait"):
        text = (folder / "cpu.lock").read_text()
    assert "method=amusd" in text
    assert "abc123" not in text


def test_one_writer_per_run_folder(tmp_path: Path) -> None:
    with locks.hold_folder(tmp_path, "resume"):
        take = f"with hold_folder(Path({str(tmp_path)!r}), 'resume'): pass"
        code = f"from pathlib import Path; from specbench.processes.locks import hold_folder\n{take}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert "another process is at work in this folder" in done.stderr
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_named_folder_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for named in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv(locks.FOLDER_VARIABLE, str(named))
        with pytest.raises(ConfigError, match=r"SPECBENCH_LOCKS=.*locks cannot be kept there.*name another folder"):
            locks.hold(["cpu"]).__enter__()


# ------------------------------------------------------------------------------------------------ a folder that all can write
SHARED_NAMES = ["", "cpu.lock", "cpu.off"]  # the folder itself, and its files
KINDS = ["file", "link to a file", "link to a folder", "link to nothing", "folder", "pipe", "hard link", "not ours"]


def occupy(path: Path, kind: str, victim: Path) -> None:
    """What somebody else may have put at a path before we came."""
    (victim / "folder").mkdir(parents=True)
    (victim / "file").write_text("precious")
    if kind == "file":
        path.write_text("")
    elif kind.startswith("link"):
        path.symlink_to(victim / kind.rpartition(" ")[2])
    elif kind == "hard link":
        os.link(victim / "file", path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()


@pytest.mark.parametrize("mode", ["wait", "off"])
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in SHARED_NAMES for kind in KINDS])
def test_nothing_that_lies_in_the_shared_folder_blocks_or_redirects_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, mode: str
) -> None:
    monkeypatch.delenv(locks.FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(locks.tempfile, "gettempdir", lambda: str(tmp_path))
    shared, victim = tmp_path / "specbench-locks", tmp_path / "victim"
    if name:
        shared.mkdir()
    if kind == "not ours":  # a folder or a file that this user may not write
        real = os.open

        def refuse(path: str | Path, flags: int, mode: int = 0o777, dir_fd: int | None = None) -> int:
            if Path("" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}"), path) == shared / name:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, flags, mode, dir_fd=dir_fd)

        monkeypatch.setattr(os, "open", refuse)
        victim.mkdir()
    else:
        occupy(shared / name if name else shared, kind, victim)
    before = {path: path.read_bytes() for path in victim.rglob("*") if path.is_file()}
    said: list[str] = []
    with locks.hold(["cpu"], mode, say=said.append) as held:
        usable = (name, kind) in [("", "folder"), ("cpu.lock", "file"), ("cpu.off", "file")]
        taken = "cpu.off" if mode == "off" else "cpu.lock"
        assert [path.name for path in (tmp_path / "cache").rglob("cpu.*")] == ([] if usable else [taken])
        assert [f"only those in {tmp_path / 'cache'}" in line for line in said] == ([] if usable else [True])
        if mode == "wait":  # a lock it is: who comes next is held up wherever it has been taken
            with pytest.raises(ConfigError, match=f"device_lock='refuse'.*process {os.getpid()}"):
                locks.hold(["cpu"], "refuse", say=said.append).__enter__()
        assert held.shared() == []
    assert {path: path.read_bytes() for path in victim.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in victim.rglob("*")) == ([] if kind == "not ours" else ["file", "folder"])


def test_what_others_write_into_a_lock_is_printed_without_control_signs(holder: type[Holder], folder: Path) -> None:
    first = holder("wait", "cpu")
    assert first.has_it()
    for text in ('{"pid": "\\u001b[2J", "since": "now\\nspecbench: all is well", "command": "x"}', "[" * 100_000, "{}", "\x00"):
        (folder / "cpu.lock").write_text(text)
        with pytest.raises(ConfigError) as caught:
            locks.hold(["cpu"], "refuse").__enter__()
        assert str(caught.value).isprintable() and len(str(caught.value)) < 600


def test_a_run_of_the_tests_leaves_no_folder_of_locks(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SPECBENCH_LOCKS", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "device_key_of_none", str(Path(__file__))]
    subprocess.run(command, env={**environment, "TMPDIR": str(tmp_path)}, capture_output=True, check=False)
    assert not list(tmp_path.glob("specbench-test-locks-*"))

"""One timing run per device and host, one writer per run folder: locks that the kernel releases when their holder dies.

A lock is `flock` on a file in the host's temporary folder (SPECBENCH_LOCKS names another). Nothing is ever left behind that
would have to be cleaned up: a killed holder's lock is free at once, and what its file still says about it is read only while
somebody holds the lock. Containers with temporary folders of their own do not see each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from specbench.config.options import ConfigError
from specbench.config.say import say
from specbench.measure.records.masking import mask_argv

FOLDER_VARIABLE = "SPECBENCH_LOCKS"
MODES = ("wait", "refuse", "off")
POLL_SECONDS = 0.2
REMIND_SECONDS = 60.0
_MET = "another run measured on {key} at the same time, with device_lock=off"


def lock_folder() -> Path:
    """Where the locks of this host are; created for all users, like the temporary folder itself."""
    named = os.environ.get(FOLDER_VARIABLE)
    folder = Path(named) if named else Path(tempfile.gettempdir()) / "specbench-locks"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=bool(named))
        folder.chmod(0o1777)  # the mode of mkdir passes the umask
    return folder


def device_key(device: str) -> str:
    """The name under which a torch device is locked: an accelerator by its UUID, whatever its number in this process."""
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return kind
    from specbench.measure.sensors import nvml

    try:
        return nvml.uuid_of_cuda_device(int(index or 0))
    except nvml.NvmlUnavailable:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        named = [part.strip() for part in visible.split(",")] if visible else []
        return f"cuda-{named[int(index or 0)] if int(index or 0) < len(named) else index or 0}"


class Held:
    """The devices that this process measures on. `shared()` says who measured on them at the same time."""

    def __init__(self, keys: Sequence[str], folder: Path, exclusive: bool):
        self.keys, self.exclusive, self._folder = list(keys), exclusive, folder
        self.known: dict[str, int] = {}  # bytes in the file of those who take no lock, when this run took the device
        self.met: list[str] = []

    def shared(self) -> list[str]:
        """One sentence per device that another run has used since it was taken; empty when it was used by this run alone."""
        for key in self.keys:
            if self.length(key) > self.known[key] or (self.exclusive and _is_held(self.path(key, "off"))):
                self.met.append(_MET.format(key=key))
        return list(dict.fromkeys(self.met))

    def path(self, key: str, kind: str) -> Path:
        """kind: "lock", held by the one run that has the device; "off", held by all that measure without asking."""
        return self._folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', key)}.{kind}"

    def length(self, key: str) -> int:
        """Runs without a lock each leave a byte: even one that came and went in between is seen."""
        path = self.path(key, "off")
        return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def hold(
    devices: Iterable[str], mode: str = "wait", say: Callable[[str], None] = say, folder: Path | None = None
) -> Iterator[Held]:
    """Have torch devices ("cpu", "cuda:0") to oneself.

    mode: wait (say who has it, wait until it is free), refuse, off (measure beside others; both sides' `shared()` tell).
    Raises ConfigError when refused, and for a lock folder that cannot be written.
    """
    assert mode in MODES, mode
    place = folder or lock_folder()
    keys = sorted({device_key(device) for device in devices})  # one order for all: two runs never wait for each other
    with contextlib.ExitStack() as stack:
        held = Held(keys, place, exclusive=mode != "off")
        try:
            for key in keys:
                _beside(held, key, stack) if mode == "off" else _alone(held, key, mode, say, stack)
        except PermissionError as error:
            raise ConfigError(
                FOLDER_VARIABLE, str(place), f"locks cannot be kept there ({error}); name another folder"
            ) from error
        yield held


def _alone(held: Held, key: str, mode: str, say: Callable[[str], None], stack: contextlib.ExitStack) -> None:
    path = held.path(key, "lock")
    file = stack.enter_context(_open(path))
    _take(file, path, key, mode, say)
    _sign(file)
    stack.callback(os.ftruncate, file, 0)
    held.known[key] = held.length(key)


def _beside(held: Held, key: str, stack: contextlib.ExitStack) -> None:
    path, others = held.path(key, "lock"), held.path(key, "off")
    if _is_held(path):
        held.met.append(f"{key} was in use by another run ({_holder(path)}) and device_lock=off")
    elif _is_held(others):
        held.met.append(_MET.format(key=key))
    file = stack.enter_context(_open(others))
    fcntl.flock(file, fcntl.LOCK_SH)
    os.write(file, b".")
    held.known[key] = held.length(key)


@contextlib.contextmanager
def hold_folder(folder: Path, key: str) -> Iterator[None]:
    """Be the only writer of a folder that exists. Raises ConfigError, naming the option `key`, if another process is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _try(descriptor):
            raise ConfigError(key, str(folder), "another process is at work in this folder; wait until it has ended")
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[int]:
    """A descriptor that children do not inherit. Another user's file is opened as it is (O_CREAT on it may be forbidden)."""
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        descriptor = os.open(path, flags | os.O_CREAT, 0o666)
        with contextlib.suppress(PermissionError):  # somebody else was faster
            os.fchmod(descriptor, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_held(path: Path) -> bool:
    if not path.exists():
        return False
    with _open(path) as descriptor:
        return not _try(descriptor)


def _take(descriptor: int, path: Path, key: str, mode: str, say: Callable[[str], None]) -> None:
    said = None
    while not _try(descriptor):
        if mode == "refuse":
            raise ConfigError(
                "device_lock", mode, f"another run measures on {key} ({_holder(path)}); device_lock=wait waits for its end"
            )
        if said is None or time.monotonic() - said > REMIND_SECONDS:
            say(f"waiting for {key}: another run measures on it ({_holder(path)}); device_lock=off would measure beside it")
            said = time.monotonic()
        time.sleep(POLL_SECONDS)


def _sign(descriptor: int) -> None:
    """Leave for those who wait who it is that they wait for."""
    about = {
        "pid": os.getpid(),
        "since": datetime.now().isoformat(sep=" ", timespec="seconds"),
        "command": " ".join(mask_argv(sys.argv[1:]))[:200],
    }
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(about).encode())


def _holder(path: Path) -> str:
    try:
        about = json.loads(path.read_bytes())
        return f"process {about['pid']} since {about['since']}: {about['command'] or 'no options'}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not said which"

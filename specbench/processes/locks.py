"""One timing run per device and host, one writer per run folder: locks that the kernel releases when their holder dies.

A lock is `flock` on a file in the host's temporary folder (SPECBENCH_LOCKS names another). Nothing is ever left behind that
would have to be cleaned up: a killed holder's lock is free at once, and what its file still says about it is read only while
somebody holds the lock. Containers with temporary folders of their own do not see each other.

Anybody may have put something where the folder or its files are expected. No link is followed, nothing but a file with one name
is opened, what others wrote is printed without control characters; and where the place cannot be used, locks are kept in the
user's own cache: then other users' runs are not seen, which is said.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import stat
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
POLICIES = ("wait", "refuse", "off")
POLL_SECONDS = 0.2
REMIND_SECONDS = 60.0
_MET = "another run measured on {key} at the same time, with device_lock=off"


def lock_folders() -> list[Path]:
    """Where the locks of this host may be, best first: for all users, then the user's own; or the one that is named."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return [Path(named)]
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"  # homes may be shared between hosts
    return [Path(tempfile.gettempdir()) / "specbench-locks", Path(cache) / "specbench" / f"locks-{socket.gethostname()}"]


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
    """The devices that this process measures on. `shared()` says who measured on them at the same time.

    folder: a descriptor of the lock folder.
    """

    def __init__(self, keys: Sequence[str], folder: int, exclusive: bool):
        self.keys, self.exclusive, self.folder = list(keys), exclusive, folder
        self.known: dict[str, int] = {}  # bytes in the file of those who take no lock, when this run took the device
        self.met: list[str] = []

    def shared(self) -> list[str]:
        """One sentence per device that another run has used since it was taken; empty when it was used by this run alone."""
        for key in self.keys:
            with contextlib.suppress(OSError):  # a file that was replaced meanwhile says nothing
                if self.length(key) > self.known[key] or (self.exclusive and _is_held(self.folder, file_name(key, "off"))):
                    self.met.append(_MET.format(key=key))
        return list(dict.fromkeys(self.met))

    def length(self, key: str) -> int:
        """Runs without a lock each leave a byte: even one that came and went in between is seen."""
        with contextlib.suppress(FileNotFoundError), _open(self.folder, file_name(key, "off"), create=False) as file:
            return os.fstat(file).st_size
        return 0


def file_name(key: str, kind: str) -> str:
    """kind: "lock", held by the one run that has the device; "off", held by all that measure without asking."""
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '-', key)}.{kind}"


@contextlib.contextmanager
def hold(
    devices: Iterable[str], policy: str = "wait", say: Callable[[str], None] = say, folder: Path | None = None
) -> Iterator[Held]:
    """Have torch devices ("cpu", "cuda:0") to oneself.

    policy: wait (say who has it, wait until it is free), refuse, off (measure beside others; both sides' `shared()` tell).
    Raises ConfigError when refused, and where locks can be kept nowhere.
    """
    assert policy in POLICIES, policy
    keys = sorted({device_key(device) for device in devices})  # one order for all: two runs never wait for each other
    places = [folder] if folder is not None else lock_folders()
    with contextlib.ExitStack() as stack:
        held = None
        for number, place in enumerate(places):
            try:
                with contextlib.ExitStack() as tried:
                    held = _hold_in(place, number == 0 and len(places) > 1, keys, policy, say, tried)
                    stack.enter_context(tried.pop_all())
                    break
            except OSError as error:
                if place is places[-1]:
                    remedy = f"locks cannot be kept there ({error}); name another folder"
                    raise ConfigError(FOLDER_VARIABLE, str(place), remedy) from error
                say(f"{place} cannot be used for locks ({error}): runs of other users are not seen, only those in {places[-1]}")
        assert held is not None
        yield held


def _hold_in(
    place: Path, public: bool, keys: Sequence[str], policy: str, say: Callable[[str], None], stack: contextlib.ExitStack
) -> Held:
    """public: the folder is for all users, in a place where each of them may have made it."""
    with contextlib.suppress(FileExistsError):
        place.mkdir(parents=not public)
        if public:
            place.chmod(0o1777)  # the mode of mkdir passes the umask
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | (os.O_NOFOLLOW if public else 0))
    stack.callback(os.close, folder)
    held = Held(keys, folder, exclusive=policy != "off")
    for key in keys:
        _beside(held, key, stack) if policy == "off" else _alone(held, key, policy, say, stack)
    return held


def _alone(held: Held, key: str, policy: str, say: Callable[[str], None], stack: contextlib.ExitStack) -> None:
    file = stack.enter_context(_open(held.folder, file_name(key, "lock")))
    _take(file, key, policy, say)
    _sign(file)
    stack.callback(os.ftruncate, file, 0)
    held.known[key] = held.length(key)


def _beside(held: Held, key: str, stack: contextlib.ExitStack) -> None:
    lock, others = file_name(key, "lock"), file_name(key, "off")
    if _is_held(held.folder, lock):
        with _open(held.folder, lock) as file:
            held.met.append(f"{key} was in use by another run ({_holder(file)}) and device_lock=off")
    elif _is_held(held.folder, others):
        held.met.append(_MET.format(key=key))
    file = stack.enter_context(_open(held.folder, others))
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
def _open(folder: int, name: str, create: bool = True) -> Iterator[int]:
    """A descriptor that children do not inherit. Another user's file is opened as it is (O_CREAT on it may be forbidden).

    Raises OSError for what is no file with this one name: a link, a pipe that would block, a folder.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        if not create:
            raise
        descriptor = os.open(name, flags | os.O_CREAT, 0o666, dir_fd=folder)
        with contextlib.suppress(PermissionError):  # somebody else was faster
            os.fchmod(descriptor, 0o666)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
            raise OSError(f"{name} is not a file with one name")
        yield descriptor
    finally:
        os.close(descriptor)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_held(folder: int, name: str) -> bool:
    with contextlib.suppress(FileNotFoundError), _open(folder, name, create=False) as descriptor:
        return not _try(descriptor)
    return False


def _take(descriptor: int, key: str, policy: str, say: Callable[[str], None]) -> None:
    began, said = time.monotonic(), None
    while not _try(descriptor):
        who = _holder(descriptor)
        if policy == "refuse":
            raise ConfigError(
                "device_lock", policy, f"another run measures on {key} ({who}); device_lock=wait waits for its end"
            )
        now = time.monotonic()
        if said is None:
            say(f"waiting for {key}: another run measures on it ({who}); device_lock=off would measure beside it")
            said = now
        elif now - said > REMIND_SECONDS:
            say(f"still waiting for {key}, {(now - began) / 60:.0f} min by now ({who})")
            said = now
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


def _holder(descriptor: int) -> str:
    """Who has the lock, as it says itself: any user may have written that."""
    try:
        about = json.loads(os.pread(descriptor, 4096, 0))
        said = f"process {about['pid']} since {about['since']}: {about['command'] or 'no options'}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "it has not said which"
    return "".join(sign if sign.isprintable() else "?" for sign in said)[:300]

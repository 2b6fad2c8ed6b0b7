"""Folders for what is made on the way. Nothing stays of them: of a process that was killed, until the next one comes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

YOUNG_SECONDS = 60.0  # a folder's maker may have it not locked yet


@contextlib.contextmanager
def scratch(name: str, parent: Path | None = None) -> Iterator[Path]:
    """An empty folder `specbench-<name>-...` of this user's alone, removed at the end. parent: the system's temporary folder.

    Its maker holds a lock on it that goes with the process, however that ends: what nobody holds any more is taken away here.
    Raises OSError where none can be made.
    """
    parent = parent or Path(tempfile.gettempdir())
    prefix = f"specbench-{name}-"
    for left in parent.glob(f"{prefix}*"):
        _take_away(left)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    held = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems know no locks: there nobody takes anything away either
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _take_away(folder: Path) -> None:
    """If it is this user's own, not just made, and its maker is gone."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        found = os.fstat(handle)
        if found.st_uid == os.getuid() and time.time() - found.st_mtime > YOUNG_SECONDS:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # somebody holds it
        pass
    finally:
        os.close(handle)

"""Figures saved by several processes that have nothing in common but files without a name.

Whatever ends any of them, nothing of theirs is left on the machine.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from specbench.analysis.show.style import Drawing

FEWEST = 8  # figures that it pays to start another process for


def save_all(drawings: Sequence[Drawing], folder: Path, workers: int = 1) -> None:
    """Save drawings, the same files from any number of workers. Raises what a figure raised in any of them."""
    shares = max(1, min(workers, len(drawings) // FEWEST))
    others: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
    try:
        for share in range(1, shares):
            others.append(_start(drawings[share::shares], folder))
        for drawing in drawings[::shares]:
            drawing.save(folder)
        for process, said in others:
            status = process.wait()
            said.seek(0)
            if error := said.read():
                raise pickle.loads(error)
            if status:
                raise RuntimeError(f"a process that saves figures ended with status {status}")
    finally:
        for process, said in others:
            process.kill()
            process.wait()
            said.close()


def _start(drawings: Sequence[Drawing], folder: Path) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    said = tempfile.TemporaryFile()  # noqa: SIM115
    with tempfile.TemporaryFile() as share:
        pickle.dump((drawings, folder), share)
        share.seek(0)
        return subprocess.Popen([sys.executable, "-m", __name__], stdin=share, stdout=said), said


def save_share() -> None:
    """The other process: save what stands on its standard input; the first error goes to its standard output, at the end."""
    drawings, folder = pickle.load(sys.stdin.buffer)
    errors = []
    for drawing in drawings:
        try:
            drawing.save(folder)
        except Exception as error:
            errors.append(error)
    if errors:
        pickle.dump(errors[0], sys.stdout.buffer)


if __name__ == "__main__":
    save_share()

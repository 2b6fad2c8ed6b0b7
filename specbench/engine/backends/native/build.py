"""Builds forward.cpp with the system's compiler into the user's cache, once for each text, compiler and instruction set."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
from pathlib import Path

from specbench.measure.records.scratch import scratch

SOURCE = Path(__file__).with_name("forward.cpp")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-pthread", "-Wno-psabi")
INSTRUCTION_SETS = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx2", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    "portable": (),
}
_TIMEOUT_SECONDS = 300
loaded: list[ctypes.CDLL] = []  # what this process computes with; empty where no model of it runs here


class CannotBuildError(Exception):
    """No library can be made here; one line says why."""


@functools.cache
def instruction_set() -> str:
    """The widest that this processor has; avx512 with the instructions that multiply bytes (VNNI)."""
    import torch

    found = {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "portable")
    return "avx2" if found == "avx512" and not torch.cpu._is_vnni_supported() else found


@functools.cache
def library(instructions: str | None = None) -> ctypes.CDLL:
    """The library for this processor, or for the named instruction set. Raises CannotBuildError."""
    made = _loaded(build(instructions or instruction_set()), instructions or instruction_set())
    made.sb_forward.restype = made.sb_keep.restype = None
    made.sb_forward.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    pointer, whole = ctypes.c_void_p, ctypes.c_int64
    made.sb_chain.restype, made.sb_chain.argtypes = whole, [pointer, pointer, pointer, whole, pointer]
    made.sb_keep.argtypes = [pointer, pointer, pointer, whole, whole, pointer, whole]
    made.sb_linear.restype, made.sb_linear.argtypes = None, [pointer, pointer, whole, pointer, whole]
    made.sb_residual.restype, made.sb_add.restype = None, None
    made.sb_residual.argtypes = [*[pointer] * 3, whole, whole, pointer, ctypes.c_float, whole, pointer, whole]
    made.sb_add.argtypes = [pointer, pointer, whole, whole]
    made.sb_norm.restype, made.sb_norm.argtypes = None, [pointer, pointer, whole, whole, ctypes.c_float, pointer]
    made.sb_ranks.restype = whole
    made.sb_ranks.argtypes = [pointer]
    made.sb_sizes.restype, made.sb_sizes.argtypes = whole, [whole]
    loaded.append(made)
    return made


def _loaded(path: Path, instructions: str) -> ctypes.CDLL:
    """What lies there; what is no library of this system (half a file, one of another host's) is built anew once."""
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
    try:
        return ctypes.CDLL(str(build(instructions)))
    except OSError as error:
        raise CannotBuildError(f"what was built does not load: {error}") from error


def build(instructions: str) -> Path:
    """The shared library's path; it is compiled if the cache has none of this source, compiler and flags."""
    command, version = compiler()
    flags = (*FLAGS, *INSTRUCTION_SETS[instructions])
    texts = [path.read_text() for path in (SOURCE, *sorted(SOURCE.parent.glob("*.h")))]
    facts = "\0".join((*texts, *flags, command, version, platform.machine(), platform.system()))
    folder = cache_folder()
    path = folder / f"forward-{instructions}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.so"
    if path.is_file():
        return path
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(scratch("build", folder)) / path.name
        except OSError as error:
            raise CannotBuildError(f"{folder} cannot be written: {error.strerror}") from error
        try:
            words = [command, *flags, "-o", str(made), str(SOURCE)]
            done = subprocess.run(
                words, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_SECONDS, check=False
            )
            if done.returncode:
                said = done.stderr.splitlines()
                first = next((line for line in said if "error" in line), said[0] if said else "no message")
                raise CannotBuildError(f"{command} failed: {first[:200]}")
            os.replace(made, path)  # whole or not at all, whoever else builds it now
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CannotBuildError(f"{command} failed: {type(error).__name__}: {error}") from error
    return path


def cache_folder() -> Path:
    """Where libraries are kept, a folder that nobody else may write to. Raises CannotBuildError."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base) / "specbench" / "native"
    if base.startswith("~"):
        raise CannotBuildError("this user has no home folder to keep it in: set XDG_CACHE_HOME")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except OSError as error:
        raise CannotBuildError(f"{folder} cannot be made: {error.strerror}") from error
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
        # What lies there is code that this process would run.
        raise CannotBuildError(f"{folder} is another user's, or others may write to it: make it private (chmod 700)")
    return folder


@functools.cache
def compiler() -> tuple[str, str]:
    """Path and version line of $CXX, c++, g++ or clang++, whichever is there first."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path is None:
            continue
        try:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
        except (OSError, subprocess.TimeoutExpired):
            continue
        return path, said.partition("\n")[0]
    raise CannotBuildError("no C++ compiler was found (CXX, c++, g++, clang++)")

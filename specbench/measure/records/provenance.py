"""Where a number came from: code, packages, machine, devices and command, collected before the first model loads.

Environment variables are recorded by an allow-list, never by exclusion; the command line and the values pass `masking`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specbench.measure.records.jsonfile import write_atomically
from specbench.measure.records.machine import machine_facts, torch_facts
from specbench.measure.records.masking import mask_argv, mask_text

ENVIRONMENT_ALLOWED = (
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUDA_MPS_PIPE_DIRECTORY", "HF_HUB_OFFLINE",
    "HIP_VISIBLE_DEVICES", "KMP_AFFINITY", "KMP_BLOCKTIME", "LD_PRELOAD", "MALLOC_ARENA_MAX", "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS", "PYTHONHASHSEED",
    "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "SLURM_CPUS_PER_TASK", "SLURM_JOB_GPUS", "SLURM_JOB_ID",
    "SLURM_JOB_PARTITION", "SPECBENCH_DATA", "TOKENIZERS_PARALLELISM", "TRANSFORMERS_OFFLINE", "WANDB_MODE",
)  # fmt: skip

# Which job, which folder, which of several equal devices: recorded, but no change of conditions.
ENVIRONMENT_OF_PLACE = {
    "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "SLURM_JOB_GPUS", "SLURM_JOB_ID", "SLURM_JOB_PARTITION",
    "SPECBENCH_DATA", "TRANSFORMERS_OFFLINE", "WANDB_MODE", "CUDA_MPS_PIPE_DIRECTORY", "PYTHONHASHSEED",
}  # fmt: skip

MACHINE_CONDITIONS = ("os", "cpu_model", "logical_cores", "affinity", "memory_bytes", "cgroup_cpu_max")
GPU_CONDITIONS = ("name", "driver", "power_limit_watts", "mig_mode")

PACKAGES = (
    "torch", "transformers", "tokenizers", "huggingface-hub", "safetensors", "accelerate", "numpy", "scipy", "pandas",
    "hydra-core", "omegaconf", "datasets", "wandb", "nvidia-ml-py", "triton", "flash-attn", "scikit-learn",
)  # fmt: skip

TRAINED_PATTERNS = ("*.safetensors", "*.pt", "*.npy", "*.json")  # heads, datastores, models: whatever an option may name
WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")
CONVERTED_FROM = "converted_from.json"  # in a folder of `pair.packaged`
TOKENIZER_PATTERNS = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template.*",
)  # fmt: skip
_MAX_HEADER = 100_000_000  # bytes: what the format itself allows


# ---------------------------------------------------------------------------------------------------- files
def cache_folder() -> Path:
    """Where hashes are remembered: $XDG_CACHE_HOME/specbench or ~/.cache/specbench."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "specbench"


def _stream_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sha256(path: str | Path) -> str:
    """sha256 (hex) of a file: the Hub's own, else remembered by (path, size, modification time), else read in pieces."""
    path = Path(path)
    real = path.resolve()
    if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):  # the Hub's cache names large blobs so
        return real.name
    stat = path.stat()
    key = f"{real}|{stat.st_size}|{stat.st_mtime_ns}"
    cache_file = cache_folder() / "sha256.json"
    try:
        cache = json.loads(cache_file.read_bytes())
        cached = cache.get(key)
        if isinstance(cached, str) and re.fullmatch(r"[0-9a-f]{64}", cached):
            return cached
    except (OSError, ValueError, AttributeError):
        cache = {}
    digest = _stream_sha256(path)
    try:  # a cache that cannot be written costs time, nothing else
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache_file, json.dumps({**(cache if isinstance(cache, dict) else {}), key: digest}))
    except OSError:
        pass
    return digest


def _folder_hash(folder: str | Path, patterns: Sequence[str]) -> str | None:
    files = sorted({path for pattern in patterns for path in Path(folder).glob(pattern)})
    if not files:
        return None
    listing = "".join(f"{file_sha256(path)}  {path.name}\n" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def model_hash(folder: str | Path) -> str | None:
    """sha256 over names and sha256 of a model folder's weights and configuration; None if there are none."""
    return _folder_hash(folder, WEIGHT_PATTERNS)


def folder_hash(folder: str | Path) -> str | None:
    """The same of any folder that training wrote."""
    return _folder_hash(folder, TRAINED_PATTERNS)


def target_identity(folder: str | Path) -> str | None:
    """What heads and borrowing drafts know their target by: the file that it was converted from, else `model_hash`.

    A converted model's own files may differ from machine to machine by what wrote them.
    """
    source = Path(folder) / CONVERTED_FROM
    if source.is_file():
        return str(json.loads(source.read_text(encoding="utf-8"))["sha256"])
    return model_hash(folder)


def tokenizer_hash(folder: str | Path) -> str | None:
    """The same over the tokenizer's files and the chat template."""
    return _folder_hash(folder, TOKENIZER_PATTERNS)


def stored_parameters(folder: str | Path) -> int | None:
    """Numbers in a model folder's safetensors files, from their headers alone; None where there are none or one is damaged.

    Tied weights are stored, and counted, once. Of quantised weights these are the packed numbers.
    """
    total = 0
    files = sorted(Path(folder).glob("*.safetensors"))
    for path in files:
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length)) if length <= _MAX_HEADER else {}
            total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
    return total or None


# ---------------------------------------------------------------------------------------------------- code and packages
def _git(root: Path, *arguments: str) -> bytes | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, timeout=20, env=environment, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def git_facts(source: str | Path | None = None) -> dict[str, Any]:
    """Commit, dirty flag and hash of the difference (untracked files included) of the checkout that the package runs from.

    A package installed into somebody else's checkout (a `.venv` inside a repository) is not tracked there and has no commit.
    """
    package = Path(source) if source else Path(__file__).resolve().parents[2]
    nothing = {"commit": None, "dirty": None, "diff_sha256": None}
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return {**nothing, "commit_why": "the package does not run from a git checkout"}
    top, commit = _git(package, "rev-parse", "--show-toplevel"), _git(package, "rev-parse", "HEAD")
    if top is None or commit is None:
        return {**nothing, "commit_why": "git could not name a commit"}
    root = Path(top.decode().strip())
    diff = _git(root, "diff", "--no-ext-diff", "--binary", "HEAD")
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "-z")
    facts: dict[str, Any] = {"commit": commit.decode().strip(), "dirty": None, "diff_sha256": None}
    if diff is None or untracked is None:
        return facts
    names = sorted(name for name in untracked.decode(errors="surrogateescape").split("\0") if name)
    facts["dirty"] = bool(diff or names)
    if facts["dirty"]:
        digest = hashlib.sha256(diff)
        for name in names:
            path = root / name
            content = _stream_sha256(path) if path.is_file() else "not a file"
            digest.update(f"\0{content} {name}".encode(errors="surrogateescape"))
        facts["diff_sha256"] = digest.hexdigest()
    return facts


def package_facts() -> dict[str, Any]:
    """Versions of the packages that can change a number, plugins included, and a hash over all installed ones."""
    installed: dict[str, str] = {}
    plugins: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if name and name not in installed:  # the first on the path is the one that is imported
            installed[name] = distribution.version
            if any(entry.group == "specbench.conf" for entry in distribution.entry_points):
                plugins[name] = distribution.version
    listing = "".join(f"{name}=={version}\n" for name, version in sorted(installed.items()))
    return {
        "versions": {name: installed[name] for name in PACKAGES if name in installed},
        "plugins": plugins,
        "num_installed": len(installed),
        "installed_sha256": hashlib.sha256(listing.encode()).hexdigest(),
    }


def scikit_learn_importable() -> bool:
    """transformers' assisted generation adapts its confidence threshold only where scikit-learn can be imported."""
    try:
        return importlib.util.find_spec("sklearn") is not None
    except (ImportError, ValueError):
        return False


# ---------------------------------------------------------------------------------------------------- all of it
def collect(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Everything of this module as one JSON-ready dictionary; `conditions_hash` is equal for runs that may be averaged."""
    from specbench.measure.sensors import nvml

    devices, why = nvml.device_facts()
    facts: dict[str, Any] = {
        "argv": mask_argv(list(sys.argv if argv is None else argv)),
        "git": git_facts(),
        "python": platform.python_version(),
        "packages": package_facts(),
        "scikit_learn_importable": scikit_learn_importable(),
        "torch": torch_facts(),
        "machine": machine_facts(),
        "gpus": devices,
        "environment": {name: mask_text(os.environ[name]) for name in ENVIRONMENT_ALLOWED if name in os.environ},
    }
    if why:
        facts["gpus_why"] = why
    facts["conditions_hash"] = conditions_hash(facts)
    return facts


def conditions_hash(facts: Mapping[str, Any]) -> str:
    """sha256 over what must agree before two runs are put into one average: code, packages, processor, devices and limits.

    Clocks, temperature and load are left out: they vary within a run; the argv and the configuration are compared apart.
    """
    machine = facts["machine"]
    chosen = {
        "git": [facts["git"].get("commit"), facts["git"].get("diff_sha256")],
        "python": facts["python"],
        "packages": facts["packages"]["versions"],
        "plugins": facts["packages"]["plugins"],
        "scikit_learn_importable": facts["scikit_learn_importable"],
        "machine": [machine[key] for key in MACHINE_CONDITIONS],
        "gpus": [[gpu.get(key) for key in GPU_CONDITIONS] for gpu in facts["gpus"]],
        "environment": {name: value for name, value in facts["environment"].items() if name not in ENVIRONMENT_OF_PLACE},
    }
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()

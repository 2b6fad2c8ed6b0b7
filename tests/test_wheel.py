"""The wheel: nothing but `specbench` at its top, everything that a run needs inside, and it works outside a checkout."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import preloaded
import pytest
from run_folders import BUILTIN

ROOT = Path(__file__).resolve().parents[1]
MAPPED = {"specbench": "specbench", "methods": "specbench/methods", "analysis": "specbench/analysis"}
DATA = {"conf": "specbench/conf", "datasets": "specbench/datasets"}
SUFFIXES = {".yaml", ".jsonl", ".md", ".json", ".safetensors"}


def expected(tree: Path) -> set[str]:
    """The names that a wheel of this tree must hold: every module, and every configuration, card, stand-in set and weight."""
    names = set()
    for folder, inside in (MAPPED | DATA).items():
        for path in (tree / folder).rglob("*"):
            if path.suffix in ({".py", ".csv", ".ipynb", ".j2", ".yaml", ".cpp", ".h"} if folder in MAPPED else SUFFIXES):
                names.add(f"{inside}/{path.relative_to(tree / folder).as_posix()}")
    for path in (tree / "specbench" / "models").rglob("*"):
        if path.is_file():
            names.add(f"specbench/{path.relative_to(tree / 'specbench').as_posix()}")
    return {name for name in names if "__pycache__" not in name}


def strange(names: Iterable[str]) -> list[str]:
    """What would land outside the package, or should not be shipped."""
    top = {"specbench"}
    return [
        n
        for n in names
        if (n.partition("/")[0] not in top and ".dist-info/" not in n) or "__pycache__" in n or n.endswith(".pyc")
    ]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(source tree, wheel). Built from a copy, with a method that is a package: such a one is easily left out."""
    base = tmp_path_factory.mktemp("wheel")
    tree = base / "tree"
    for folder in MAPPED | DATA:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree / name)
    package = tree / "methods" / "packaged_method" / "inner"
    package.mkdir(parents=True)
    for folder_ in (package.parent, package):
        (folder_ / "__init__.py").write_text('"""A method in several files."""\n')
    (tree / "conf" / "method" / "packaged_method.yaml").write_text("_target_: specbench.methods.packaged_method.X\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(base / "out"),
    ]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (base / "out").glob("*.whl")
    return tree, wheel


def test_top_level_is_specbench_alone(built: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(built[1]).namelist()
    assert not strange(names)
    assert built[1].name.startswith("specbench_") and not built[1].name.startswith("specbench-"), (
        "the name belongs to another project"
    )


def test_everything_is_inside(built: tuple[Path, Path]) -> None:
    tree, wheel = built
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = expected(tree)
    assert "specbench/methods/packaged_method/inner/__init__.py" in wanted
    assert "specbench/conf/config.yaml" in wanted
    assert {f"specbench/engine/backends/native/{name}" for name in ("forward.cpp", "blocks.h")} <= wanted
    assert "specbench/models/builtin/target/config.json" in wanted
    assert any(n.startswith("specbench/datasets/") and n.endswith(".jsonl") for n in wanted)
    assert not wanted - names


def test_the_two_checks_catch_their_fault(built: tuple[Path, Path]) -> None:
    tree, wheel = built
    names = set(zipfile.ZipFile(wheel).namelist())
    assert strange([*names, "datasets/__init__.py"]) == ["datasets/__init__.py"]
    (tree / "methods" / "added_later.py").write_text("")
    assert expected(tree) - names == {"specbench/methods/added_later.py"}
    (tree / "methods" / "added_later.py").unlink()


@pytest.fixture(scope="module")
def elsewhere(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path]:
    """(environment, working folder) in which the wheel's files are the only specbench, outside any checkout."""
    site, cwd = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("cwd")
    zipfile.ZipFile(built[1]).extractall(site)
    environment = {k: v for k, v in os.environ.items() if k != "SPECBENCH_DATA"} | {"PYTHONPATH": str(site)}
    return environment, cwd


def test_the_installed_wheel_finds_its_own_files(elsewhere: tuple[dict[str, str], Path]) -> None:
    environment, cwd = elsewhere
    code = (
        "import specbench, specbench.methods, specbench.analysis; from specbench.config.paths import *;"
        "print(specbench.__file__, specbench.methods.__file__, specbench.analysis.__file__, CONF_DIR, DATASETS_DIR, MODELS_DIR)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    places = done.stdout.split()
    assert len(places) == 6, done.stderr
    for place in places:
        assert place.startswith(environment["PYTHONPATH"]) and Path(place).exists()


OPTIONS = [
    *BUILTIN,
    *("data=humaneval", "data.source=standin", "data.limit=1", "measure.repeats=1", "measure.warmup=1"),
    *("decoding.max_new_tokens=8", "engine.threads=1"),  # else a second goes into the choice of a number of threads
]


def from_wheel(site: str, arguments: list[str]) -> None:
    """`python -m specbench` of the wheel's files, in a forked process whose other packages are imported already."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "specbench"]:
        del sys.modules[name]
    sys.path.insert(0, site)
    os.environ.pop("SPECBENCH_DATA", None)
    importlib.invalidate_caches()
    preloaded.module("specbench", arguments)


def test_the_installed_wheel_runs_a_job(elsewhere: tuple[dict[str, str], Path], tmp_path: Path) -> None:
    environment, cwd = elsewhere
    arguments = ["method=speculative", *OPTIONS]
    started = preloaded.Started(tmp_path, from_wheel, environment["PYTHONPATH"], arguments, cwd=cwd)
    assert started.ended(120) == 0, started.err
    check_job(cwd, started.out)


@pytest.mark.slow
def test_the_installed_wheel_runs_a_job_with_a_worker(elsewhere: tuple[dict[str, str], Path]) -> None:
    environment, cwd = elsewhere
    line = [sys.executable, "-m", "specbench", "method=amusd", *OPTIONS]
    done = subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    check_job(cwd, done.stdout)


def check_job(cwd: Path, out: str) -> None:
    summary = json.loads(out.splitlines()[-1])
    assert summary["status"] == "success"
    assert summary["lossless"]["verdict"] == "identical"
    assert (cwd / summary["run_folder"] / "run.json").is_file()
    assert {path.name for path in cwd.iterdir()} == {"runs"}, "a run leaves its run folder and nothing else"

"""The rooms of the house: which folder holds Python, and which way imports may point."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "specbench"


def python(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)


# ------------------------------------------------------------------------------------------------ folders
def test_conf_and_datasets_hold_no_python() -> None:
    """A datasets/__init__.py would shadow Hugging Face's package at the root and overwrite it from a wheel."""
    assert (ROOT / "datasets").is_dir()
    for folder in ("conf", "datasets"):
        assert not list((ROOT / folder).rglob("*.py"))


IS_HUGGING_FACE = "import datasets; assert callable(datasets.load_dataset)"


def test_datasets_is_hugging_faces_at_the_root() -> None:
    # The attribute and not the import: without Hugging Face's package the data folder imports as an empty namespace.
    done = python(IS_HUGGING_FACE)
    assert done.returncode == 0, done.stderr


def test_a_shadowing_datasets_package_is_caught(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("")
    assert python(IS_HUGGING_FACE, cwd=tmp_path).returncode != 0


def test_dependencies_do_not_name_scikit_learn() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = project["dependencies"] + [d for extra in project["optional-dependencies"].values() for d in extra]
    assert named
    assert not [d for d in named if d.lower().replace("_", "-").startswith(("scikit-learn", "sklearn"))]


def test_the_tested_set_covers_every_dependency() -> None:
    import re
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines), "exact versions, no build, no address"
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    assert "torch==2.13.0" in lines
    for wanted in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name = re.match(r"[A-Za-z0-9_-]+", wanted)[0].lower().replace("_", "-")  # type: ignore[index]
        assert name in pinned, f"{name} has no exact version in constraints.txt"


# ------------------------------------------------------------------------------------------------ arrows, from the source
def imports(source: str) -> Iterator[str]:
    """Every module that a source text imports, at the top or inside a function, by absolute name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def forbidden(source: str, *names: str) -> list[str]:
    return [found for found in imports(source) if any(found == n or found.startswith(f"{n}.") for n in names)]


def modules(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found
    return found


def test_core_never_imports_methods_or_analysis() -> None:
    for path in modules(CORE):
        # The front door alone may hand finished runs to the analysis, and does so inside a function.
        names = ["specbench.methods"] if path.name == "cli.py" else ["specbench.methods", "specbench.analysis"]
        assert not forbidden(path.read_text(), *names, "methods", "analysis"), path


RUN_ROOMS = (
    "specbench.run.run",
    "specbench.front.cli",
    "specbench.measure.records.store",
    "specbench.track.__main__",
    "hydra",
    "omegaconf",
    "wandb",
)


def test_methods_import_contracts_and_engine_only() -> None:
    own = {
        path: f"specbench.methods.{path.relative_to(ROOT / 'methods').parts[0].removesuffix('.py')}"
        for path in modules(ROOT / "methods")
    }
    for path, name in own.items():
        source = path.read_text()
        assert not forbidden(source, *RUN_ROOMS), path
        others = [m for m in forbidden(source, "specbench.methods") if m != name and not m.startswith(f"{name}.")]
        assert not others, f"{path} uses another method's insides"


def test_analysis_reads_stored_runs_alone() -> None:
    for path in modules(ROOT / "analysis"):
        assert not forbidden(path.read_text(), "torch", "transformers", "specbench.methods", "specbench.engine"), path


@pytest.mark.parametrize(
    "source",
    [
        "import specbench.methods.overlap.amusd",
        "from specbench import methods",
        "def f():\n    from specbench.methods.overlap.amusd import Amusd",
        "try:\n    import specbench.methods\nexcept ImportError:\n    pass",
    ],
)
def test_a_wrong_arrow_is_caught(source: str) -> None:
    assert forbidden(source, "specbench.methods")
    assert not forbidden(source.replace("methods", "method"), "specbench.methods")


# ------------------------------------------------------------------------------------------------ arrows, as they run
BLOCK = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"refused: {{name}}", name=name)
sys.meta_path.insert(0, Refuse())
import importlib
for name in {names!r}:
    importlib.import_module(name)
"""
FRONT = ("hydra", "omegaconf", "datasets", "wandb", "pandas", "matplotlib")


def names_below(package: str) -> list[str]:
    folder = CORE / package
    inner = [".".join(("specbench", *p.relative_to(CORE).with_suffix("").parts)) for p in modules(folder)]
    return [name.removesuffix(".__init__") for name in inner]


def import_without(blocked: tuple[str, ...], names: list[str]) -> subprocess.CompletedProcess[str]:
    return python(BLOCK.format(blocked=blocked, names=names))


def test_engine_measure_and_run_import_without_the_front_doors_libraries() -> None:
    done = import_without(FRONT, [*names_below("engine"), *names_below("measure"), "specbench.run.run"])
    assert done.returncode == 0, done.stderr


def test_measure_imports_without_torch() -> None:
    done = import_without(("torch", "transformers", *FRONT), names_below("measure"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("blocked", FRONT[:2])
def test_an_import_of_a_blocked_library_is_caught(blocked: str) -> None:
    done = import_without((blocked,), ["specbench.front.cli"])
    assert done.returncode != 0
    assert f"refused: {blocked}" in done.stderr

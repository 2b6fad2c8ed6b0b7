"""The rooms of the house: which folder holds Python, and which way imports may point."""

from __future__ import annotations

import ast
import functools
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


# ------------------------------------------------------------------------------------------------ floors and arrows
# The house from the ground up: a room may import the rooms named behind it, and no other. Lazy imports, and those for type
# checkers, count as any other; specbench.methods and specbench.analysis are the folders methods/ and analysis/.
ARROWS: dict[str, str] = {
    # ground
    "config": "",
    "measure": "",
    # machine
    "engine": "config measure",
    "processes": "engine config measure",  # of engine its threads; the model's loader and the order are handed in
    "data": "config",
    "pair": "engine config measure",
    # shelf
    "parts": "engine processes config measure",
    # recipes
    "method": "parts engine processes config",
    "methods": "method parts engine config",  # the engine where a draft runs parts of the target itself
    # work
    "run": "method pair data engine processes config measure",
    # doors
    "track": "config measure processes",
    "train": "method parts pair data engine measure config",  # never run
    "check": "train method parts pair data engine processes measure config",
    "front": "run track config measure processes analysis",  # analysis inside a function
    "qualify": "check methods method pair engine processes measure config",  # runs are commands of their own
    "__main__": "front",
    # reads stored runs alone
    "analysis.read": "measure config",
    "analysis.derive": "analysis.read measure config",
    "analysis.show": "analysis.derive analysis.read measure config",
    "analysis.reports": "analysis.show analysis.derive analysis.read measure config",
    "analysis": "analysis.reports analysis.show analysis.read",
    "analysis.__main__": "analysis analysis.reports analysis.show config",
    # a door over both: methods at work where nothing is measured, and figures of it
    "sim": "run method parts pair data engine processes measure config analysis.show",
}
# Libraries that a room and everything below it does without, so that it runs where they are missing.
WITHOUT: dict[str, tuple[str, ...]] = {
    "measure": ("torch", "transformers", "hydra", "omegaconf", "datasets", "wandb", "pandas", "matplotlib"),
    "engine": ("hydra", "omegaconf", "datasets", "wandb", "pandas", "matplotlib"),
    "processes": ("hydra", "omegaconf", "datasets", "wandb", "pandas", "matplotlib", "transformers"),
    "parts": ("hydra", "omegaconf", "datasets", "wandb", "pandas", "matplotlib"),
    "methods": ("hydra", "omegaconf", "datasets", "wandb", "pandas", "matplotlib"),
    "run": ("hydra", "omegaconf", "wandb", "pandas", "matplotlib"),
    "analysis": ("torch", "transformers"),
}
Graph = dict[str, set[str]]


@functools.cache
def imports(source: str) -> tuple[str, ...]:
    """Every module that a source text imports, at the top or inside a function, by absolute name."""
    return tuple(_imports(source))


def _imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources() -> dict[str, str]:
    """Every module of the house by its import name, and its text."""
    found = {}
    for package, folder in (
        ("specbench", CORE),
        ("specbench.methods", ROOT / "methods"),
        ("specbench.analysis", ROOT / "analysis"),
    ):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path.read_text()
    return found


def graph(texts: dict[str, str]) -> Graph:
    """Which module imports which other one of the house; a name inside a module counts as the module."""
    edges: Graph = {name: set() for name in texts}
    for name, text in texts.items():
        for imported in imports(text):
            while imported and imported not in texts:
                imported = imported.rpartition(".")[0]
            if imported not in ("", "specbench", name):
                edges[name].add(imported)
    return edges


def room(module: str) -> str:
    parts = module.split(".")[1:]
    return ".".join(parts[:2]) if parts[0] == "analysis" else parts[0]


def wrong_arrows(edges: Graph) -> list[str]:
    return [
        f"{name} -> {imported}"
        for name, imports_of in sorted(edges.items())
        for imported in sorted(imports_of)
        if name != "specbench" and room(imported) not in (room(name), *ARROWS[room(name)].split())
    ]


def other_methods(edges: Graph) -> list[str]:
    """Methods that import another method: what two of them use stands on the shelf."""
    own = {name: ".".join(name.split(".")[:4]) for name in edges if name.count(".") > 2 and room(name) == "methods"}
    return [f"{a} -> {b}" for a, mine in own.items() for b in edges[a] if room(b) == "methods" and not b.startswith(mine)]


def circles(edges: Graph) -> list[list[str]]:
    """Modules that import each other, however indirectly (strongly connected components of more than one)."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str, into: list[str], along: Graph) -> None:
        stack = [(name, iter(sorted(along[name])))]
        seen.add(name)
        while stack:
            rest = stack[-1][1]
            after = next((n for n in rest if n not in seen), None)
            if after is None:
                into.append(stack.pop()[0])
            else:
                seen.add(after)
                stack.append((after, iter(sorted(along[after]))))

    for name in edges:
        if name not in seen:
            visit(name, order, edges)
    back: Graph = {name: {other for other, used in edges.items() if name in used} for name in edges}
    seen.clear()
    found = []
    for name in reversed(order):
        if name not in seen:
            component: list[str] = []
            visit(name, component, back)
            found.append(component)
    return [sorted(component) for component in found if len(component) > 1]


def test_every_room_is_on_the_plan() -> None:
    rooms = {room(name) for name in sources() if name not in ("specbench", "specbench.analysis")} | {"analysis"}
    assert rooms == set(ARROWS)
    for name, below in ARROWS.items():
        assert set(below.split()) < set(ARROWS), name


def test_arrows_point_down() -> None:
    edges = graph(sources())
    assert sum(map(len, edges.values())) > 500
    assert wrong_arrows(edges) == []
    assert other_methods(edges) == []
    order = list(ARROWS)
    up = [f"{name} -> {b}" for name, below in ARROWS.items() for b in below.split() if order.index(b) > order.index(name)]
    assert sorted(up) == ["front -> analysis"], "the plan is written from the ground up"


def test_no_module_imports_itself_by_a_detour() -> None:
    assert circles(graph(sources())) == []


def test_heavy_libraries_stay_in_their_rooms() -> None:
    found = [
        f"{name} -> {imported}"
        for name, text in sources().items()
        if name != "specbench"
        for imported in imports(text)
        if imported.partition(".")[0] in WITHOUT.get(room(name), WITHOUT.get(room(name).partition(".")[0], ()))
    ]
    allowed = {"specbench.measure.sensors.clock -> torch"}  # inside the clock of a device, which only torch can have opened
    assert set(found) <= allowed, sorted(set(found) - allowed)


@pytest.mark.parametrize(
    "source",
    [
        "import specbench.methods.overlap.amusd",
        "from specbench import methods",
        "def f():\n    from specbench.methods.overlap.amusd import Amusd",
        "try:\n    import specbench.methods\nexcept ImportError:\n    pass",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from specbench.methods.overlap import amusd",
    ],
)
def test_a_wrong_arrow_is_caught(source: str) -> None:
    texts = sources()
    texts["specbench.engine.cache"] = source
    assert [arrow for arrow in wrong_arrows(graph(texts)) if arrow.startswith("specbench.engine.cache -> specbench.methods")]


def test_a_circle_is_caught() -> None:
    texts = sources()
    texts["specbench.engine.tree"] += "\ndef later():\n    from specbench.engine.session import Session\n"
    assert any({"specbench.engine.tree", "specbench.engine.session"} <= set(circle) for circle in circles(graph(texts)))


def test_a_method_that_uses_another_is_caught() -> None:
    texts = sources()
    texts["specbench.methods.online.osd"] += "\nfrom specbench.methods.chains.speculative import Speculative\n"
    assert other_methods(graph(texts)) == ["specbench.methods.online.osd -> specbench.methods.chains.speculative"]


def global_writes(text: str) -> list[str]:
    """Assignments to an attribute of an imported module: a module's state set from outside."""
    tree = ast.parse(text)
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("specbench"):
            names = [(alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names]
            modules |= {name for name, full in names if full in MODULES}
    targets = [
        target
        for node in ast.walk(tree)
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    return [
        ast.unparse(target)
        for target in targets
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id in modules
    ]


MODULES = set(sources())


def test_no_module_global_is_set_from_outside() -> None:
    found = {name: writes for name, text in sources().items() if (writes := global_writes(text))}
    assert found == {}
    assert global_writes("from specbench.front import cli\ncli.SAID = []\n") == ["cli.SAID"]
    assert global_writes("import os\nos.linesep = ''\n") == ["os.linesep"]


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


def names_below(*rooms: str) -> list[str]:
    return [name for name in sources() if name != "specbench" and room(name) in rooms]


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

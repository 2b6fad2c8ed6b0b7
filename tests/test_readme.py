"""The README stays true: its tree is made from the modules' own first sentences, and the commands that it shows exist.

python tests/test_readme.py      # writes the tree anew
"""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
START, END = "<!-- tree: python tests/test_readme.py -->", "<!-- end of tree -->"
WIDTH = 128

FOLDERS = {
    "conf": "Hydra's YAML groups: method, pair, data, engine, track, launcher, sweep, experiment, train",
    "datasets": "a card per data set, and the stand-in sets; no Python",
    "specbench": "front door and the run",
    "specbench/engine": "how tokens come to be",
    "specbench/measure": "what is written down, and what it means",
    "specbench/data": "a data configuration to samples, a sample to prompt ids",
    "specbench/training": "the parts that a pair or a method needs, trained",
    "specbench/check": "any method through the law and identity checks",
    "specbench/trackers": "mirrors of finished numbers",
    "specbench/models": "the built-in pair: weights and card",
    "methods": "one idea per file",
    "methods/pearl": "PEARL",
    "analysis": "tables, figures, reports from stored runs",
    "runs": "where run folders go",
    "tests": "the tests; tests/bench holds benchmarks that compare side by side in one run",
}
LISTED = ("specbench", "methods", "analysis")  # a line per file; of the other folders one line each


def tracked() -> list[str]:
    found = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    return sorted(name for name in found.stdout.split() if (ROOT / name).is_file())


def sentence(path: Path) -> str:
    """The first sentence of a module's docstring (of its leading comment where it is a notebook's source), on one line."""
    source = path.read_text()
    comment = [line.lstrip("# ") for line in source.splitlines() if line.startswith("# ") and not line.startswith("# %%")]
    text = " ".join((ast.get_docstring(ast.parse(source)) or "\n".join(comment[:1])).split("\n\n")[0].split())
    assert text, f"{path.relative_to(ROOT)} has no docstring"
    return re.split(r"(?<=[a-z0-9`)\]])\.(?: (?=[A-Z`])|$)", text, maxsplit=1)[0].rstrip(".")


def tree() -> str:
    modules = [name for name in tracked() if name.endswith(".py") and name.partition("/")[0] in LISTED]
    folders = sorted({str(Path(name).parent) for name in modules} | set(FOLDERS), key=lambda f: (f.partition("/")[0], f))
    lines: list[str] = []
    for folder in folders:
        if not (ROOT / folder).is_dir():
            continue
        lines.append(f"{folder + '/':<28}{FOLDERS.get(folder, '')}".rstrip())
        for name in modules:
            if str(Path(name).parent) == folder and Path(name).name != "__init__.py":
                line = f"  {Path(name).name:<26}{sentence(ROOT / name)}"
                lines.append(line if len(line) <= WIDTH else line[: WIDTH - 4].rsplit(" ", 1)[0] + " ...")
    return "\n".join(["```", *lines, "```"])


def test_the_tree_is_true() -> None:
    text = README.read_text()
    written = text.split(START)[1].split(END)[0].strip()
    assert written == tree(), "the README's tree is out of date: python tests/test_readme.py"


def test_the_commands_exist() -> None:
    text, makefile = README.read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for module in set(re.findall(r"python -m (specbench[.\w]*)", text)):
        path = ROOT / module.replace(".", "/")
        mapped = ROOT / module.removeprefix("specbench.").replace(".", "/")  # methods/ and analysis/ stand at top level
        assert any(p.with_suffix(".py").is_file() or (p / "__main__.py").is_file() for p in (path, mapped)), module
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link


if __name__ == "__main__":
    before, _, rest = README.read_text().partition(START)
    README.write_text(before + START + "\n\n" + tree() + "\n\n" + END + rest.partition(END)[2])

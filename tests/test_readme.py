"""README and docs stay true: the rooms are those on disk, links lead somewhere, the commands that they show exist."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README, INDEX = ROOT / "README.md", ROOT / "docs" / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
MAX_LINES = 180  # a README of one sitting; the generated tables, which grow with the house, are looked up and not read
ROOMS = ("<!-- rooms:begin -->", "<!-- rooms:end -->")
MODULE = re.compile(r"python -m (specbench(?:\.\w+)*)")
CHOICE = re.compile(r"(?<![\w./])(method@baseline|method|pair|data|track|launcher|experiment)=([\w.,]+)")


def rooms_on_disk() -> set[str]:
    """Folders at the top that git knows, the package's own folders in place of the package."""
    found = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    folders = [Path(name).parts[:-1] for name in found.stdout.splitlines() if (ROOT / name).is_file()]
    inside = {f"{'/'.join(parts[:2])}/" for parts in folders if parts[:1] == ("specbench",) and len(parts) > 1}
    return inside | {f"{parts[0]}/" for parts in folders if parts and parts[0] != "specbench" and parts[0][0] != "."}


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_one_sitting_long() -> None:
    text = re.sub(r"<!-- (\w+):begin -->.*?<!-- \1:end -->", "", README.read_text(), flags=re.S)
    assert len(text.splitlines()) <= MAX_LINES


def test_the_rooms_are_those_on_disk() -> None:
    table = README.read_text().split(ROOMS[0])[1].split(ROOMS[1])[0]
    listed = re.findall(r"^\| `([^`]+)` \|", table, re.M)
    assert len(listed) == len(set(listed))
    assert set(listed) == rooms_on_disk()


def test_every_page_is_in_the_index() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)", INDEX.read_text()))
    assert {page.name for page in PAGES if page.parent == INDEX.parent and page != INDEX} <= linked
    assert {path.name for path in INDEX.parent.iterdir() if path.suffix in (".png", ".svg", ".html")} <= set(
        re.findall(r"[\w.]+", INDEX.read_text())
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_exist(page: Path) -> None:
    text, makefile = page.read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^    |`)make (\w+)", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for module in set(MODULE.findall(text)):
        path = ROOT / module.replace(".", "/")
        mapped = ROOT / module.removeprefix("specbench.").replace(".", "/")  # methods/ and analysis/ stand at top level
        assert any(p.with_suffix(".py").is_file() or (p / "__main__.py").is_file() for p in (path, mapped)), module
    for group, names in CHOICE.findall(text):
        folder = ROOT / "conf" / group.partition("@")[0]
        for name in names.strip(".,").split(","):
            assert (folder / f"{name}.yaml").is_file(), f"{group}={name}"
    for script in set(re.findall(r"(?:tests|conf|analysis|specbench|methods)/[\w./]+\.(?:py|yaml|md)", text)):
        assert (ROOT / script).is_file(), script


def test_the_table_of_methods_is_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails: python -m specbench.check.table"""
    from specbench.check import table

    monkeypatch.setattr(table, "table", functools.cache(table.table))  # asking every method once is enough
    text = (ROOT / "README.md").read_text()
    assert table.written(text) == text
    assert table.written(text.replace("| layerskip |", "| layerslip |")) == text

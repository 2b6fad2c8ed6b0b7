"""README's table of methods, from what the methods say of themselves: `python -m specbench.check.table` writes it anew."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from specbench.check.bench import GREEDY, SAMPLED
from specbench.config.compose import compose
from specbench.config.paths import CONF_DIR
from specbench.method import Method, create_method

BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"
COLUMNS = ("method", "paper", "draft", "shape", "stop", "rule", "schedule", "claim", "needs")
_PAPER = re.compile(r"\b(\d{4}\.\d{5})\b")


def names() -> list[str]:
    """Every method that ships with the project."""
    return sorted(path.stem for path in (CONF_DIR / "method").glob("*.yaml") if not path.stem.startswith("_"))


def row(name: str) -> dict[str, str]:
    """What a method is made of with its default options."""
    node = compose([f"method={name}"]).method
    method = create_method(node)
    module = sys.modules[type(method).__module__]
    papers = dict.fromkeys(_PAPER.findall((module.__doc__ or "").split("\n\n")[0]))
    needs = method.needs
    maker = method.schedule if needs.draft == "worker" else method.drafter
    asked = [*sorted(needs.of_target - {"taps"}), *(["taps"] if needs.taps else [])]
    where = {"none": [], "local": ["draft model"], "worker": ["worker"]}[needs.draft]
    stop = type(method.stop).__name__.lower()
    scope = ["order of prompts"] if needs.scope == "session" else []
    return {
        "method": name,
        "paper": ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in papers) or "-",
        "draft": maker.source + (" that learns" if method.adapter else ""),
        "shape": maker.form,
        "stop": "-" if maker.form == "-" else {"stop": "fixed"}.get(stop, stop),
        "rule": ", ".join(_rules(method)),
        "schedule": method.schedule.name,
        "claim": ", ".join(dict.fromkeys(_claims(node, method))),
        "needs": ", ".join([*where, *asked, *scope]) or "-",
    }


def _rules(method: Method) -> list[str]:
    return ["match", *(rule for rule in method.rules or () if rule not in ("greedy_match", "sample_match"))]


def _claims(node: dict[str, Any], method: Method) -> list[str]:
    """ids: token for token; law: in law; lossy. Of the default rule at both temperatures, then of the others."""
    found = []
    for rule in (None, *(r for r in method.rules or () if r not in ("greedy_match", "sample_match"))):
        made = create_method({**node, "rule": rule}) if rule else method
        claim = made.claim(SAMPLED)
        found.append("lossy" if claim == "lossy" else "ids" if made.same_ids(SAMPLED) and made.same_ids(GREEDY) else "law")
    return found


def table() -> str:
    """The whole table in Markdown."""
    rows = [row(name) for name in names()]
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(one[column] for column in COLUMNS)} |" for one in rows]
    return "\n".join(lines)


def written(text: str) -> str:
    """A page with the table between its marks made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert rest and after, "the page has no place for the table"
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> None:
    page = Path("README.md")
    page.write_text(written(page.read_text()))


if __name__ == "__main__":
    main()

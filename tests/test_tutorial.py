"""The tutorial's method, taken from its page, does what the page says: it drafts, passes every check, its commands work."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import tiny
from hydra._internal.utils import get_args_parser

from specbench.check import CHECKS, SKIP, law
from specbench.check.__main__ import compose, main
from specbench.method import Method, create_method

PAGE = Path(__file__).resolve().parents[1] / "methods" / "README.md"


def blocks(text: str) -> dict[str, str]:
    """The page's code blocks by file name (the first line says it), and the shell block under "sh"."""
    found = {}
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        found["sh" if language == "sh" else body.splitlines()[0].removeprefix("# ")] = body
    return found


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The files of the page, in a folder of their own that Python runs in."""
    found = blocks(PAGE.read_text())
    for name, body in found.items():
        if name != "sh":
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(body)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_methods", raising=False)
    monkeypatch.setattr(law, "NUM_SEEDS", 150)  # enough for a method whose ids are compared as well
    return found


def test_the_page_holds_a_class_a_yaml_and_two_commands(page: dict[str, str]) -> None:
    assert set(page) == {"my_methods.py", "my_conf/method/my_lookup.yaml", "sh"}
    assert len(page["sh"].splitlines()) == 2


def test_the_method_drafts_what_was_there_before(page: dict[str, str]) -> None:
    method = create_method(compose(["method=my_lookup", "allow_targets=[my_methods]"], ["my_conf"]).method, ["my_methods"])
    model = tiny.model()
    around = tiny.runtime(model, max_new_tokens=40)
    prompt = [3, 4, 5, 6, 7, 3, 4]
    outcome, plain = tiny.decode(method, around, prompt), tiny.decode(Method(), around, prompt)
    assert outcome.output_ids == plain.output_ids
    assert sum(r.num_drafted for r in outcome.rounds) > 0
    begun = create_method({"_target_": "my_methods.MyLookup", "draft_length": 3}, ["my_methods"])
    begun.begin(tiny.request(around, [3, 4, 5, 6, 7, 3]), first_token=4)
    assert begun.propose(10).tokens == [5, 6, 7]
    assert begun.propose(2).tokens == [5, 6]
    begun.begin(tiny.request(around, [3, 4]), first_token=5)
    assert begun.propose(10).tokens == []


def test_its_check_command_passes_every_check(page: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(page["sh"].splitlines()[0])
    assert words[:3] == ["python", "-m", "specbench.check"]
    assert main(words[3:]) == 0
    out = capsys.readouterr().out.splitlines()
    passed = [line.split(":")[1].strip() for line in out if line.startswith("pass  tiny pair")]
    assert passed == list(CHECKS) and not [line for line in out if line.startswith(SKIP)]
    (eos,) = [line for line in out if "EOS anywhere" in line]
    assert not eos.endswith("in 0 of them the EOS was an accepted draft")
    assert out[-1] == "my_lookup: all checks passed"


def test_its_run_command_names_the_method(page: dict[str, str]) -> None:
    words = shlex.split(page["sh"].splitlines()[1])
    assert words[:3] == ["python", "-m", "specbench"]
    parsed = get_args_parser().parse_args(words[3:])
    config = compose(parsed.overrides, [parsed.config_dir])
    assert (config.method_name, config.data.name) == ("my_lookup", "humaneval")
    assert type(create_method(config.method, config.allow_targets)).__name__ == "MyLookup"


def test_a_broken_tutorial_is_found(page: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The twin: the same page with one line left out, the one that takes in what was committed."""
    body = page["my_methods.py"].replace("        self.tokens = [*request.prompt_ids, first_token]\n", "        pass\n")
    body = body.replace("        super().__init__", "        self.tokens = [1]\n        super().__init__")
    (tmp_path / "my_methods.py").write_text(body)
    assert main(shlex.split(page["sh"].splitlines()[0])[3:]) == 1
    assert "FAIL  tiny pair: fresh state" in capsys.readouterr().out

"""The project's own sets: in the format of the real ones, and what they claim is true."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from specbench.config.paths import DATASETS_DIR
from specbench.data import is_right
from specbench.data.files import DATA_VARIABLE, read_rows
from specbench.data.load import STANDIN_FOLDER, load_standin, standin_names

MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
FIELDS = {
    "humaneval": {"task_id", "prompt", "entry_point", "canonical_solution", "test"},
    "mt_bench": {"question_id", "category", "turns"},
    "specbench": {"question_id", "category", "turns"},
    "refactorchat": {"conversation_id", "model", "conversation", "turn", "language"},
    **{name: {"question_id", "turns", "answer"} for name in ("gsm8k", "math500", "aime24", "aime25")},
    **{name: {"question_id", "turns"} for name in ("mbpp", "livecodebench", "swe_bench")},
}

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

# Runs every problem of stdin against its own test and its docstring's examples; prints the ids that fail.
RUNNER = """
import doctest, json, sys
failed = []
for row in json.load(sys.stdin):
    names = {"__name__": "problem"}
    try:
        exec(row["prompt"] + row["canonical_solution"] + "\\n" + row["test"], names)
        solution = names[row["entry_point"]]
        names["check"](solution)
        examples = doctest.DocTestParser().get_doctest(solution.__doc__, names, row["task_id"], None, 0)
        assert examples.examples, "no example"
        assert doctest.DocTestRunner(verbose=False).run(examples, out=lambda text: None).failed == 0
    except Exception:
        failed.append(row["task_id"])
print(json.dumps(failed))
"""


def rows_of(name: str) -> list[dict[str, Any]]:
    return read_rows(STANDIN_FOLDER / f"{name}.jsonl")


def failing(rows: list[dict[str, Any]]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], input=json.dumps(rows), capture_output=True, text=True, check=True, timeout=120
    )
    return list(json.loads(done.stdout))


def code_blocks(row: dict[str, Any]) -> list[str]:
    return [block for message in row["conversation"] for block in re.findall(r"```python\n(.*?)```", message["content"], re.S)]


def test_one_set_for_each_card() -> None:
    assert standin_names() == tuple(sorted(FIELDS))
    for name in FIELDS:
        card = (DATASETS_DIR / f"{name}.md").read_text()
        assert f"standin/{name}.jsonl" in card
    assert not list(DATASETS_DIR.rglob("*.py")), "a datasets/__init__.py would shadow Hugging Face datasets"


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_fields_are_those_of_the_real_set(name: str) -> None:
    for row in rows_of(name):
        assert set(row) == FIELDS[name]


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_texts_are_not_one_template_with_other_numbers(name: str) -> None:
    samples = load_standin(name).samples
    shapes = Counter(re.sub(r"\d+", "0", turn.user) for sample in samples for turn in sample.turns)
    assert max(shapes.values()) == 1


@pytest.mark.parametrize("name", ["gsm8k", "math500", "aime24", "aime25"])
def test_every_problem_has_an_answer_that_the_sets_grade_knows(name: str) -> None:
    """A reply that boxes it is right, one that boxes something else is not; answers of AIME are integers from 0 to 999."""
    samples = load_standin(name).samples
    for sample in samples:
        assert sample.answer is not None
        assert is_right("boxed", f"So it is $\\boxed{{{sample.answer}}}$.", sample.answer)
        assert not is_right("boxed", f"So it is $\\boxed{{{sample.answer}1}}$.", sample.answer)
        assert not name.startswith("aime") or 0 <= int(sample.answer) <= 999
    assert len({sample.answer for sample in samples}) > len(samples) / 2


def test_every_reference_solution_passes_its_own_test_and_examples() -> None:
    rows = rows_of("humaneval")
    assert len(rows) >= 24
    assert failing(rows) == []


def test_no_problem_accepts_a_solution_that_does_nothing() -> None:
    rows = [{**row, "canonical_solution": "    pass\n"} for row in rows_of("humaneval")]
    assert failing(rows) == [row["task_id"] for row in rows]


def test_a_slip_in_one_solution_is_caught() -> None:
    rows = rows_of("humaneval")
    broken = next(row for row in rows if row["entry_point"] == "merge_bookings")
    changed = broken["canonical_solution"].replace("<= gap", "< gap")
    assert changed != broken["canonical_solution"]
    broken["canonical_solution"] = changed
    assert failing(rows) == [broken["task_id"]]


def test_mt_bench_has_three_two_turn_questions_for_each_category() -> None:
    samples = load_standin("mt_bench").samples
    assert Counter(sample.category for sample in samples) == dict.fromkeys(MT_BENCH, 3)
    assert {len(sample.turns) for sample in samples} == {2}


def test_specbench_holds_questions_of_mt_bench_and_five_further_tasks() -> None:
    samples = load_standin("specbench").samples
    turns = {sample.category: {len(one.turns) for one in samples if one.category == sample.category} for sample in samples}
    single = ("translation", "summarization", "qa", "math_reasoning", "rag")
    assert turns == {category: {2} for category in MT_BENCH} | {category: {1} for category in single}
    assert {sample for sample in samples if sample.category in MT_BENCH} <= set(load_standin("mt_bench").samples)
    lengths = [len(sample.turns[0].user) for sample in samples if sample.category in ("rag", "summarization")]
    assert min(lengths) > 1000, "real passages"


def test_refactorchat_conversations() -> None:
    samples = load_standin("refactorchat").samples
    assert len(samples) >= 20
    assert {len(sample.turns) for sample in samples} == {4}
    assert all(turn.reference for sample in samples for turn in sample.turns)


def test_refactorchat_code_is_python() -> None:
    for row in rows_of("refactorchat"):
        blocks = code_blocks(row)
        assert len(blocks) >= 5
        for block in blocks:
            compile(block, row["conversation_id"], "exec")


def test_refactorchat_tests_pass_on_the_code_before_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a conversation ends with tests, they hold for its code."""
    num_tests = 0
    for row in rows_of("refactorchat"):
        if "def test_" not in row["conversation"][-1]["content"]:
            continue
        module = types.ModuleType("conversation")  # dataclasses look their module up
        monkeypatch.setitem(sys.modules, "conversation", module)
        names = vars(module)
        for message in row["conversation"]:
            if message["role"] == "assistant" and "\nplay()\n" not in message["content"]:
                for block in re.findall(r"```python\n(.*?)```", message["content"], re.S):
                    exec(block, names)
        for name, test in list(names.items()):
            if name.startswith("test_"):
                test(*([tmp_path] if test.__code__.co_argcount else []))
                num_tests += 1
    assert num_tests >= 5


@pytest.mark.skipif(not os.environ.get(DATA_VARIABLE), reason=f"{DATA_VARIABLE} names no folder with the published sets")
def test_no_text_is_taken_from_the_published_sets() -> None:
    folder = Path(os.environ[DATA_VARIABLE])
    names = ("HumanEval.jsonl.gz", "spec_bench_question.jsonl")  # the latter holds MT-Bench
    rows = [row for name in names for row in read_rows(folder / name)]
    rows += [row for file in sorted((folder / "more").glob("*.jsonl")) for row in read_rows(file)]
    published = {words for row in rows for text in [row.get("prompt", ""), *row.get("turns", [])] for words in runs(text)}
    for name in FIELDS:
        for sample in load_standin(name).samples:
            for turn in sample.turns:
                assert not set(runs(turn.user)) & published, (sample.sample_id, set(runs(turn.user)) & published)
    assert set(runs(rows[0]["prompt"])) & published, "the comparison finds a text that is in both"


def runs(text: str, length: int = 8) -> list[tuple[str, ...]]:
    """All runs of `length` words, INSTRUCTION aside, which is part of the form; numbers and single letters do not count, since
    short sequences of them are nobody's text."""
    words = re.findall(r"[^\W\d_]{2,}", text.replace(INSTRUCTION, "").lower())
    return [tuple(words[place : place + length]) for place in range(len(words) - length + 1)]

"""Rows to samples, where they come from, what the result may be called, and which samples are drawn."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specbench import data
from specbench.config.options import ConfigError
from specbench.config.paths import CONF_DIR
from specbench.config.schema import DataConfig
from specbench.data.files import DATA_VARIABLE, file_names, read_rows, sha256_of
from specbench.data.load import own_grade
from specbench.data.published import PUBLISHED
from specbench.data.samples import content_digest, parse

NAMES = ("humaneval", "mt_bench", "refactorchat", "specbench")
FIXED = (*NAMES, "gsm8k", "math500", "aime24", "aime25", "mbpp", "livecodebench", "swe_bench")  # sets with published sums


def config_of(name: str, **changes: Any) -> DataConfig:
    """The shipped configuration of a set."""
    return dataclasses.replace(DataConfig(**yaml.safe_load((CONF_DIR / "data" / f"{name}.yaml").read_text())), **changes)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test may ask the network or find this machine's files."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no-cache"))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


QUESTIONS = [
    {"question_id": number, "category": "even" if number % 2 == 0 else "odd", "turns": [f"ask {number}", "more"]}
    for number in range(12)
]
CONVERSATIONS: list[dict[str, Any]] = [
    {
        "conversation_id": f"c{number}",
        "model": "m",
        "conversation": [
            {"content": f"{role} {turn} of {number}", "role": role} for turn in range(4) for role in ("user", "assistant")
        ],
        "turn": 4,
        "language": "English",
    }
    for number in range(3)
]


# Formats ------------------------------------------------------------------------------------------------------------------


def test_fields_tell_the_format() -> None:
    completion = parse([{"task_id": "T/0", "prompt": "def f():\n", "entry_point": "f"}], "here")[0]
    assert completion == data.Sample("T/0", None, (data.Turn("def f():\n"),), completion=True)
    question = parse([{"question_id": 7, "category": "math", "turns": ["a", "b"], "reference": ["3"]}], "here")[0]
    assert question == data.Sample("7", "math", (data.Turn("a"), data.Turn("b")))
    assert parse([{"question_id": 7, "category": "math", "prompt": ["a", "b"]}], "here")[0] == question
    conversation = parse(CONVERSATIONS, "here")[1]
    assert conversation.sample_id == "c1" and len(conversation.turns) == 4
    assert conversation.turns[2] == data.Turn("user 2 of 1", "assistant 2 of 1")


def test_rows_of_ones_own_traffic() -> None:
    talk = [{"role": role, "content": f"{role} {turn}"} for turn in range(2) for role in ("user", "assistant")]
    rows: list[dict[str, Any]] = [
        {"prompt": "alone", "answer": 7},
        {"turns": ["a", "b"], "category": None},
        {"messages": [{"role": "system", "content": "be brief"}, *talk[:3]], "question_id": "x", "category": "chat"},
        {"messages": talk},
    ]
    alone, turns, chat, whole = parse(rows, "here")
    assert alone == data.Sample("0", None, (data.Turn("alone"),), answer="7")
    assert turns == data.Sample("1", None, (data.Turn("a"), data.Turn("b")))
    said = (data.Turn("user 0", "assistant 0"), data.Turn("user 1"))
    assert chat == data.Sample("x", "chat", said, system="be brief")
    assert whole.turns == (said[0], data.Turn("user 1", "assistant 1"))
    assert [data.turns_to_generate(one, "auto") for one in (alone, turns, chat, whole)] == [[0], [0, 1], [1], [1]]
    assert content_digest([chat]) != content_digest([dataclasses.replace(chat, system=None)])
    assert content_digest([alone]) == content_digest([dataclasses.replace(alone, answer=None)])


def test_a_sets_yaml_says_how_its_rows_become_messages(tmp_path: Path) -> None:
    config = DataConfig(name="mine", path=str(tmp_path / "a.jsonl"), text="{problem}\nBox it: \\boxed{}.", answer="solution")
    rows = [{"task_id": 3, "problem": "1 + 1?", "solution": "easy #### 2"}, {"turns": ["as it stands"]}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    first, second = data.load(config).samples
    assert first == data.Sample("0", None, (data.Turn("1 + 1?\nBox it: \\boxed{}."),), answer="2")
    assert second.turns[0].user == "as it stands"
    write_jsonl(tmp_path / "a.jsonl", [{"question": "1 + 1?"}])
    with pytest.raises(ConfigError, match="row 1: field 'problem' is missing"):
        data.load(config)


def test_masked_rows_are_refused_by_number(tmp_path: Path) -> None:
    config = config_of("speed_bench", path=str(tmp_path / "q.jsonl"))
    mask = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"
    rows = [{"question_id": f"q{n}", "category": "c", "turns": [text]} for n, text in enumerate(("ask", mask, "more", mask))]
    write_jsonl(tmp_path / "q.jsonl", rows)
    with pytest.raises(ConfigError, match="row 2, row 4: the text is masked"):
        data.load(config)
    write_jsonl(tmp_path / "q.jsonl", rows[::2])
    assert (data.load(config).name, len(data.load(config).samples)) == ("speed_bench", 2)


def test_a_folder_is_searched_with_the_folders_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / ".hidden").mkdir()
    write_jsonl(tmp_path / ".hidden" / "prompts.jsonl", [{"prompt": "hidden"}])
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match="no local file"):
        data.load(config_of("prompts"))
    write_jsonl(tmp_path / "more" / "prompts.jsonl", [{"prompt": "inside"}])
    assert data.load(config_of("prompts")).samples[0].turns[0].user == "inside"
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "outside"}])
    assert data.load(config_of("prompts")).samples[0].turns[0].user == "outside"


def test_conversation_may_end_with_the_user() -> None:
    rows = [{"conversation_id": "x", "conversation": CONVERSATIONS[0]["conversation"][:7]}]
    assert [turn.reference is None for turn in parse(rows, "here")[0].turns] == [False, False, False, True]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{"text": "hello"}], "unknown format"),
        ([{"question_id": 1, "turns": []}], "'turns' is empty"),
        ([{"question_id": 1, "turns": [""]}], "not a text"),
        ([{"conversation": []}], "field 'conversation_id' is missing"),
        ([{"question_id": "1", "turns": ["a"]}, {"turns": ["b"]}], "row 2: id '1' was already used in row 1"),
        ([{"prompt": ""}], "'prompt' holds '', not a text"),
        ([{"messages": [{"role": "tool", "content": "a"}]}], "do not alternate"),
        ([{"messages": [{"role": "system", "content": "a"}]}], "'messages' is not a list of messages"),
        ([{"messages": [{"role": "user", "content": [{"type": "text"}]}]}], "'content' holds .*, not a text"),
        ([{"question_id": 1, "turns": ["a"]}, {"question_id": "1", "turns": ["b"]}], "row 2: id '1' was already used in row 1"),
        ([{"question_id": True, "turns": ["a"]}], "not an id"),
        ([{"conversation_id": "x", "conversation": [{"role": "assistant", "content": "a"}]}], "do not alternate"),
        ([{"conversation_id": "x", "conversation": [{"role": "user"}]}], "field 'content' is missing"),
        ([{"conversation_id": "x", "conversation": []}], "not a list of messages"),
    ],
)
def test_bad_rows_are_named(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match="^here.*" + message):
        parse(rows, "here")


def test_all_bad_rows_are_named_at_once() -> None:
    good = [{"question_id": n, "turns": ["a"]} for n in range(3)]
    bad = [
        *({"question_id": 10, "turns": []}, {"question_id": 11, "turns": [5]}, {"conversation": []}),
        *({"task_id": "x", "prompt": 7}, {"question_id": 12, "turns": []}, {"question_id": 1, "turns": ["b"]}),
        *({"question_id": 13, "turns": ["half \ud800"]}, {"question_id": "\udfff", "turns": ["a"]}),
        {"conversation_id": "c", "conversation": [None]},
    ]
    with pytest.raises(ValueError, match=r"^here, ") as caught:
        parse([*good, *bad], "here")
    said = str(caught.value)
    assert "row 4, row 8: 'turns' is empty" in said and "row 5: 'turns' holds 5, not a text" in said
    assert "row 6: field 'conversation_id' is missing" in said and "row 9: id '1' was already used in row 2" in said
    assert "row 10: 'turns' holds '\\ud800' at character 5, which is no character" in said and "row 11: 'question_id'" in said
    assert "row 7: unknown format" in said and "row 12: " in said and "\n" not in said
    assert len(parse(good, "here")) == 3
    said.encode()


def test_digest_sees_every_part_and_no_container(tmp_path: Path) -> None:
    base = parse(CONVERSATIONS, "here")
    plain = write_jsonl(tmp_path / "a.jsonl", CONVERSATIONS)
    packed = write_jsonl(tmp_path / "a.jsonl.gz", CONVERSATIONS)
    assert content_digest(parse(read_rows(plain), "")) == content_digest(parse(read_rows(packed), "")) == content_digest(base)
    first = base[0]
    others = [
        base[::-1],
        base[:2],
        (dataclasses.replace(first, sample_id="other"), *base[1:]),
        (dataclasses.replace(first, category="c"), *base[1:]),
        (dataclasses.replace(first, completion=True), *base[1:]),
        (dataclasses.replace(first, turns=(data.Turn("user 0 of 0", "x"), *first.turns[1:])), *base[1:]),
        (dataclasses.replace(first, turns=(data.Turn("x", "assistant 0 of 0"), *first.turns[1:])), *base[1:]),
    ]
    assert len({content_digest(one) for one in [base, *others]}) == len(others) + 1


PACKED = gzip.compress(b"".join(b'{"question_id": %d, "turns": ["%x"]}\n' % (i, i**9) for i in range(20)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{broken\n', "line 2: not JSON"),
        ("a.jsonl", b'{broken\n{"a": 1}\n[1]\n', r"line 1: not JSON.*; line 3: not an object"),
        ("a.jsonl", b'{"a": 1}\n{"a": ' + b"9" * 5000 + b"}\n", "line 2: not JSON: .*digits"),  # more than Python reads
        ("a.jsonl", b'{"a": 1}\n' + b"[" * 100_000 + b"\n", "line 2: not JSON: .*recursion"),
        ("a.jsonl", b"[1]\n", "line 1: not an object"),
        ("a.jsonl", b"\xff\xfe", "cannot be read"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.jsonl.gz", PACKED[:-30], "cannot be read"),  # cut
        ("a.jsonl.gz", PACKED[:30] + bytes([PACKED[30] ^ 0xFF]) + PACKED[31:], "cannot be read"),  # wrong within
        ("a.jsonl.gz", PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:], "cannot be read"),  # its sum is another
        ("a.jsonl", gzip.decompress(PACKED)[:-5], "line 20: not JSON"),
        ("a.parquet", b"no parquet", "cannot be read as parquet"),
        ("a.parquet", b"PAR1" + bytes(100), "cannot be read as parquet"),
        ("a.csv", b"x", "unknown kind of file"),
    ],
)
def test_unreadable_files_are_one_clear_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        data.load(config_of("mt_bench", path=str(tmp_path / name)))
    assert caught.value.key == "data.path" and "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "one"}\r\n{"prompt": "two"}\r\n')
    assert [sample.turns[0].user for sample in parse(read_rows(tmp_path / "a.jsonl"), "")] == ["one", "two"]


def test_a_line_separator_inside_a_text_does_not_cut_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question_id": 1, "turns": ["one\u2028two\x85three"]}\n', encoding="utf-8")
    assert parse(read_rows(path), "")[0].turns[0].user == "one\u2028two\x85three"


# Sources and names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIXED)
def test_shipped_configuration_agrees_with_the_published_sums(name: str) -> None:
    config = config_of(name)
    assert config.name == name and config.sha256 == PUBLISHED[name].file_sha256
    assert (config.hub_repo is None) == (config.hub_file is None)


@pytest.mark.parametrize("name", FIXED)
def test_offline_auto_gives_the_stand_in_under_its_own_name(name: str) -> None:
    dataset = data.load(config_of(name))
    assert (dataset.name, dataset.source) == (f"{name}-standin", "standin")
    assert len(dataset.samples) >= (20 if name in NAMES else 5)
    assert len(dataset.warnings) == 1 and dataset.warnings[0].startswith(f"stand-in data, not {name}")
    assert dataset.sha256 == sha256_of(Path(dataset.file))
    assert data.load(config_of(name, source="standin")).samples == dataset.samples


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["hub", "path"])
def test_hub_and_path_refuse_the_stand_in_with_the_reason(name: str, source: str) -> None:
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE|no Hub repository" if source == "hub" else DATA_VARIABLE) as caught:
        data.load(config_of(name, source=source))
    assert caught.value.key == "data.source"


def test_what_the_user_names_is_never_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        data.load(config_of("humaneval", path=str(tmp_path / "gone.jsonl")))
    with pytest.raises(ConfigError, match=r"holds none of HumanEval\.jsonl\.gz, HumanEval\.jsonl, humaneval\.jsonl"):
        data.load(config_of("humaneval", path=str(tmp_path)))
    for source in ("hub", "standin"):
        with pytest.raises(ConfigError, match=f"contradicts data.source={source}"):
            data.load(config_of("humaneval", path=str(tmp_path), source=source))
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=f"^{DATA_VARIABLE}="):
        data.load(config_of("humaneval"))
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))  # a folder that lacks one set is no error
    assert data.load(config_of("humaneval")).source == "standin"


@pytest.mark.parametrize("key", ["source", "template", "history"])
def test_wrong_choices_name_the_possible_ones(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^data\.{key}='nonsense': possible: "):
        data.load(config_of("humaneval", **{key: "nonsense"}))


def test_another_file_needs_its_own_checksum_and_then_its_own_name(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "HumanEval.jsonl", [{"task_id": "HumanEval/0", "prompt": "def edited():\n"}])
    config = config_of("humaneval", path=str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        data.load(config)
    message = str(caught.value)
    assert sha256_of(path) in message and str(config.sha256) in message and "data.sha256=" in message
    dataset = data.load(dataclasses.replace(config, sha256=sha256_of(path)))
    assert (dataset.name, dataset.source, dataset.sha256) == ("humaneval-custom", "path", sha256_of(path))
    assert "variant of humaneval" in dataset.warnings[0]


def test_one_changed_byte_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the check: the same file passes when its sums are the published ones."""
    path = write_jsonl(tmp_path / "mt_bench_question.jsonl", QUESTIONS)
    known = dataclasses.replace(
        PUBLISHED["mt_bench"], file_sha256=sha256_of(path), content_sha256=content_digest(parse(QUESTIONS, ""))
    )
    monkeypatch.setitem(PUBLISHED, "mt_bench", known)
    config = config_of("mt_bench", path=str(path))
    assert data.load(config).name == "mt_bench"
    (tmp_path / "repacked.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert data.load(config_of("mt_bench", path=str(tmp_path / "repacked.jsonl.gz"))).name == "mt_bench"
    path.write_text(path.read_text().replace("ask 3", "ask  3"))
    with pytest.raises(ConfigError, match="content differs"):
        data.load(config)


def test_a_set_of_ones_own_needs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", QUESTIONS)
    config = DataConfig(name="mine", path=str(tmp_path))
    assert file_names(config)[0] == "mine.jsonl"
    dataset = data.load(config)
    assert (dataset.name, len(dataset.samples)) == ("mine", 12) and "declares no checksum" in dataset.warnings[0]
    assert data.load(dataclasses.replace(config, sha256=sha256_of(path))).warnings == ()
    graded = dataclasses.replace(config, sha256=sha256_of(path), grade="number")
    assert data.load(graded).warnings == ("mine.jsonl has no answers: data.grade=number grades nothing",)
    monkeypatch.setattr(
        sys.modules["specbench.data.load"], "own_grade", lambda name: "number"
    )  # the set's own YAML says it: nobody asked
    assert data.load(graded).warnings == ()
    with_one = [QUESTIONS[0] | {"answer": "4"}, *QUESTIONS[1:]]
    path = write_jsonl(tmp_path / "mine.jsonl", with_one)
    assert data.load(dataclasses.replace(graded, sha256=sha256_of(path), answer="answer")).warnings == ()
    with pytest.raises(ConfigError, match="expected 0000"):
        data.load(dataclasses.replace(config, sha256="0" * 64))
    with pytest.raises(ConfigError, match="no stand-in set of this name"):
        data.load(DataConfig(name="mine"))


def test_refactorchat_parquet_is_held_to_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    config = config_of("refactorchat", path=str(tmp_path))
    path = tmp_path / config.file
    pandas.DataFrame(CONVERSATIONS).to_parquet(path)
    with pytest.raises(ConfigError, match=f"{sha256_of(path)}, expected 087c6569"):
        data.load(config)
    monkeypatch.setitem(PUBLISHED, "refactorchat", dataclasses.replace(PUBLISHED["refactorchat"], file_sha256=sha256_of(path)))
    dataset = data.load(config)
    assert (dataset.name, dataset.samples) == ("refactorchat", parse(CONVERSATIONS, ""))
    assert [data.turns_to_generate(sample, config.history) for sample in data.select(dataset, config)] == [[3]] * 3


def test_refactorchat_jsonl_is_accepted_but_not_called_refactorchat(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "refactorchat.jsonl", CONVERSATIONS)
    dataset = data.load(config_of("refactorchat", path=str(tmp_path)))
    assert dataset.samples == parse(CONVERSATIONS, "") and dataset.sha256 == sha256_of(path)
    assert dataset.name == "refactorchat-custom" and "cannot be verified" in dataset.warnings[0]


# Selection ----------------------------------------------------------------------------------------------------------------


def dataset_of(rows: list[dict[str, Any]]) -> data.Dataset:
    samples = parse(rows, "")
    return data.Dataset("test", "path", samples, "", content_digest(samples), "")


def test_draw_is_the_documented_one() -> None:
    """Recomputed by hand from the rule: categories in turn, inside each by sha256 of "<seed>:<id>"."""
    ranks = {parity: [n for n in range(12) if n % 2 == parity] for parity in (0, 1)}
    for numbers in ranks.values():
        numbers.sort(key=lambda number: hashlib.sha256(f"3:{number}".encode()).digest())
    expected = sorted([*ranks[0][:3], *ranks[1][:2]])
    drawn = data.select(dataset_of(QUESTIONS), DataConfig(limit=5, seed=3))
    assert [int(sample.sample_id) for sample in drawn] == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), limit=st.integers(1, 40), seed=st.integers(0, 5))
def test_draw_is_balanced_nested_and_in_file_order(sizes: list[int], limit: int, seed: int) -> None:
    rows = [
        {"question_id": f"{category}-{place}", "category": str(category), "turns": [f"{category}-{place}"]}
        for category, size in enumerate(sizes)
        for place in range(size)
    ]
    dataset = dataset_of(rows)
    drawn = data.select(dataset, DataConfig(limit=limit, seed=seed))
    assert len(drawn) == min(limit, len(rows))
    order = [sample.sample_id for sample in dataset.samples]
    assert [order.index(sample.sample_id) for sample in drawn] == sorted(order.index(sample.sample_id) for sample in drawn)
    counts = [sum(sample.category == str(category) for sample in drawn) for category in range(len(sizes))]
    for count, size in zip(counts, sizes, strict=True):
        assert count == size or count >= max(counts) - 1, "a category with samples left is at most one behind"
    assert set(drawn) <= set(data.select(dataset, DataConfig(limit=limit + 1, seed=seed)))
    assert drawn == data.select(dataset, DataConfig(limit=limit, seed=seed))


def test_a_small_draw_takes_the_largest_categories() -> None:
    rows = [
        {"question_id": f"{category}-{place}", "category": category, "turns": ["question"]}
        for category, size in (("writing", 1), ("math", 1), ("qa", 3), ("rag", 3))
        for place in range(size)
    ]
    drawn = data.select(dataset_of(rows), DataConfig(limit=3))
    assert [sample.category for sample in drawn] == ["writing", "qa", "rag"]


def test_seed_changes_the_draw_and_null_takes_all() -> None:
    dataset = dataset_of(QUESTIONS)
    assert len({data.select(dataset, DataConfig(limit=4, seed=seed)) for seed in range(8)}) > 1
    assert data.select(dataset, DataConfig(limit=None)) == dataset.samples == data.select(dataset, DataConfig(limit=12, seed=5))


def test_categories() -> None:
    dataset = dataset_of(QUESTIONS)
    odd = data.select(dataset, DataConfig(limit=None, categories=["odd"]))
    assert [sample.sample_id for sample in odd] == ["1", "3", "5", "7", "9", "11"]
    with pytest.raises(ConfigError, match=r"\['odd', 'blue'\]: possible for test are even, odd"):
        data.select(dataset, DataConfig(categories=["odd", "blue"]))
    with pytest.raises(ConfigError, match="possible"):
        data.select(dataset, DataConfig(categories=[]))
    with pytest.raises(ConfigError, match="has no categories"):
        data.select(dataset_of(CONVERSATIONS), DataConfig(categories=["x"]))
    with pytest.raises(ConfigError, match=r"data\.limit=0"):
        data.select(dataset, DataConfig(limit=0))


def test_history_that_cannot_run_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"data\.history='dataset'.*baseline or own"):
        data.select(dataset_of(QUESTIONS), DataConfig(history="dataset"))


def test_warm_up_prompts_are_outside_the_evaluated_set() -> None:
    dataset, config = dataset_of(QUESTIONS), DataConfig(name="mt_bench", limit=4, categories=["odd"])
    evaluated = data.select(dataset, config)
    warm = data.warmup_samples(dataset, evaluated, 6, config)
    assert len(warm) == 6 and not set(warm) & set(evaluated)
    assert [sample.category for sample in warm] == ["odd"] * 2 + ["even"] * 4, "categories of the evaluated ones first"
    assert warm == data.warmup_samples(dataset, evaluated, 6, config)
    assert data.warmup_samples(dataset, evaluated, 0, config) == ()
    longer = data.warmup_samples(dataset, evaluated, 10, config)
    assert longer[:8] == data.warmup_samples(dataset, evaluated, 8, config)
    own = {sample.sample_id for sample in data.load(config_of("mt_bench", source="standin")).samples}
    assert {sample.sample_id for sample in longer[8:]} <= own, "then the set's stand-in"


def test_warm_up_when_the_stand_in_itself_is_evaluated_whole() -> None:
    for name in NAMES:
        config = config_of(name, source="standin", limit=None)
        dataset = data.load(config)
        warm = data.warmup_samples(dataset, dataset.samples, 4, config)
        texts = {sample.turns for sample in dataset.samples}
        assert len(warm) == 4 and not any(sample.turns in texts for sample in warm)
        for sample in warm:
            assert data.turns_to_generate(sample, config.history)
    with pytest.raises(ConfigError, match=r"measure\.warmup=10000"):
        data.warmup_samples(dataset, dataset.samples, 10_000, config)


def test_a_set_says_its_own_grade() -> None:
    assert own_grade("gsm8k") == "boxed"
    assert own_grade("humaneval") is None and own_grade("nobody's") is None

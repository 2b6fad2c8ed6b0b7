"""docs/architectures.md is what the command finds now; the command sees faults that are put in.

The page is checked whole where its version of transformers is installed (slow). Rotary embeddings that depend on the length are
checked on every architecture that can have one, against transformers' own cache fed a row a time (slow).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from test_oracle_transformers import generate

import specbench.engine.session as session_module
from specbench.check import architectures
from specbench.check.architectures import PAGE, examine, examine_all, main, make, names, page
from specbench.engine import masks, rotary
from specbench.engine.model import Model
from specbench.engine.sampling import SamplingLaw
from specbench.engine.session import Session
from specbench.methods.chains.autoregressive import Autoregressive
from specbench.methods.chains.speculative import Speculative

FINDINGS = {
    "llama": (None, None, None),
    "gpt_oss": (None, None, None),
    "moshi": (None, None, None),
    "bloom": (None, None, "order of rows"),
    "falcon alibi": (None, None, "order of rows"),
    "mamba2": (None, None, "belongs to one path"),
    "lfm2": (None, "layers of type conv", None),
    "xlnet": (None, "a probe of its cache failed", None),
    "musicgen": ("AttributeError", None, None),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_an_architecture_gets_its_verdict_and_reason(name: str) -> None:
    (found,) = examine_all([name])
    for said, expected in zip((found.not_made, found.no_chains, found.no_trees), FINDINGS[name], strict=True):
        assert said is None if expected is None else expected in str(said), found


def causal_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    real = session_module.build
    monkeypatch.setattr(
        session_module, "build", lambda plan, past, depths, parents, *rest: real(plan, past, depths, None, *rest)
    )


def late_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """One off from the twentieth row on, where the probe does not look."""
    real = Session.start

    def start(self: Session, capacity: int) -> None:
        real(self, capacity)
        self._positions = (torch.arange(capacity) + (torch.arange(capacity) > 20)).unsqueeze(0)

    monkeypatch.setattr(Session, "start", start)


def a_window_that_nobody_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "WITHOUT_WINDOW", ())


@pytest.mark.parametrize(
    ("fault", "name", "where", "reason"),
    [
        (causal_tree, "llama", "no_trees", "branches of a tree"),
        (late_positions, "llama", "no_chains", "logits off by"),
        (late_positions, "gemma3_text", "no_chains", "logits off by"),
        (a_window_that_nobody_applies, "moshi", "no_chains", "cannot be rolled back exactly"),
    ],
)
def test_faults_are_found(fault: Any, name: str, where: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    assert reason in str(getattr(examine(name), where))


@pytest.mark.parametrize("name", ["bloom", "falcon alibi"])
def test_models_that_make_their_own_mask_decode_chains_as_generate_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    untied = {**architectures.MORE.get(name, {}), "tie_word_embeddings": False}  # tied, it would say one word for ever
    monkeypatch.setitem(architectures.MORE, name, untied)
    module, prompt = make(name), tiny.prompt(9)
    model, draft = Model.wrap(module), Model.wrap(tiny.noisy_copy(module, 0.1))
    assert tiny.decode(Speculative(draft_length=4), tiny.runtime(model, draft), prompt).output_ids == generate(
        model, prompt, 24
    )
    around = tiny.runtime(model, draft, SamplingLaw(2.0))
    outcome = tiny.decode(Speculative(draft_length=4), around, prompt)
    assert outcome.output_ids == tiny.decode(Autoregressive(), around, prompt).output_ids and len(set(outcome.output_ids)) > 6
    assert any(r.num_accepted for r in outcome.rounds) and any(r.num_discarded for r in outcome.rounds)


def test_the_page_has_a_place_for_every_type() -> None:
    words = set(re.findall(r"[\w-]+(?: alibi)?", PAGE.read_text()))
    if f"transformers {transformers.__version__} " in PAGE.read_text():
        assert set(names()) <= words


def test_the_command_examines_what_is_named_and_writes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["llama", "bloom"]) == 0
    said = capsys.readouterr().err
    assert "llama: chains and trees" in said and "bloom: it makes its mask" in said
    monkeypatch.setattr(architectures, "names", lambda: ["gpt2", "bloom", "lfm2", "musicgen"])
    assert main(["--out", str(tmp_path / "page.md")]) == 0
    text = (tmp_path / "page.md").read_text()
    assert "## Chains and trees: 1\n\ngpt2.\n" in text and "## Chains: 1\n" in text and "| lfm2 | layers of type conv" in text
    assert "## Not made here: 1\n" in text and "| musicgen | AttributeError" in text


@pytest.mark.slow
def test_the_page_is_true() -> None:
    text = PAGE.read_text()
    if f"transformers {transformers.__version__} " not in text:
        pytest.skip("the page is of another version of transformers")
    assert page(examine_all(names())) == text


@pytest.mark.slow
def test_frequencies_that_depend_on_the_length_are_exact_with_every_architecture_that_can_have_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompt and drafts cross the line; the witness is a module that no session has seen, fed a row a time."""
    real, compared, wrong = architectures.tiny_config, [], {}

    def scaled(kind: Any, name: str = "") -> Any:
        config = real(kind, name)
        given = getattr(config, "rope_parameters", None)
        if isinstance(given, dict) and given.get("rope_type") == "default":
            config.rope_parameters = {**given, "rope_type": "dynamic", "factor": 4.0}
            config.max_position_embeddings = 12
        return config

    monkeypatch.setattr(architectures, "tiny_config", scaled)
    (exact,) = re.findall(r"## Chains and trees: \d+\n\n(.*?)\.\n", PAGE.read_text(), re.DOTALL)
    for name in set(re.split(r",\s+", exact)) - set(rotary.RECOMPUTED):
        try:
            witness, module = make(name), make(name)
        except ZeroDivisionError:  # NTK scaling has no formula for two rotated dimensions a head
            continue
        model = Model.wrap(module)
        if not any(type(part).__name__ == "ByRow" for part in module.modules()):
            continue
        ids, cache = architectures.PROMPT + tiny.prompt(21), transformers.DynamicCache()
        with torch.inference_mode():
            rows = [witness(input_ids=torch.tensor([ids[:10]]), past_key_values=cache).logits[0, -1]]
            for at in range(10, 40):
                place = torch.tensor([[at]])
                output = witness(input_ids=torch.tensor([[ids[at]]]), past_key_values=cache, position_ids=place)
                rows.append(output.logits[0, -1])
        session = Session(model)
        session.start(64)
        ours = [session.feed(ids[:10], last_only=True), session.feed(ids[10:16])]
        session.feed(ids[20:])
        session.rollback(16)
        ours += [session.feed(ids[16:17]), session.feed(ids[17:])]
        error = architectures.difference(torch.cat(ours), torch.stack(rows)[:, : model.vocab_size])
        compared.append(name)
        if error > architectures.TOLERANCE:
            wrong[name] = error
    assert len(compared) > 60 and wrong == {}

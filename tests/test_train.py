"""The training command makes a miniature pair end to end; its parts do what the card says of them."""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import FUNCTION, TINY, Miniature, settings_for
from preloaded import Started, module
from transformers import AutoModelForCausalLM, AutoTokenizer

from specbench.config.options import ConfigError
from specbench.config.schema import PairConfig
from specbench.engine.reduced import frequent_ids
from specbench.measure.records.provenance import target_identity
from specbench.measure.theory import formulas, recorded
from specbench.pair.load import load_model
from specbench.pair.spec import specify
from specbench.parts.drafts.datastore import Datastore
from specbench.parts.heads.base import TargetParts
from specbench.parts.heads.files import target_hash
from specbench.parts.heads.rounding import round_mantissa
from specbench.parts.heads.stored import load_heads
from specbench.parts.stops.specdec_pp import AcceptanceHead
from specbench.train import chats, evaluate, replies
from specbench.train.__main__ import run
from specbench.train.corpus import sources as corpora
from specbench.train.corpus.chat import FIELD, chat_prompts
from specbench.train.corpus.licences import Package, stated_licence
from specbench.train.corpus.tokenizer import train_tokenizer
from specbench.train.distill import OwnTextBatches, check_head, distillation_loss, draft_from_layers, final_hidden, head_of
from specbench.train.generate import choose, continuations, distinct_share, mask_after_end
from specbench.train.loop import Schedule, train, use_autocast
from specbench.train.optim import learning_rate_factor, make_optimizers
from specbench.train.overlap import OverlapFilter, evaluation_files, evaluation_texts
from specbench.train.settings import PartSettings, Settings, TrainSettings, settings_from
from specbench.train.target import new_llama, next_token_loss, save_model
from specbench.train.tokens import PackedBatches, write_tokens
from specbench.train.unlikelihood import LIKELY, UNLIKELY, mix, refining_loss, repeated


@pytest.fixture
def source(miniature: Miniature) -> Path:
    """A folder of Python files and notes that covers all splits."""
    return miniature.source


@pytest.fixture
def pair(miniature: Miniature) -> Path:
    """A miniature target and draft, by the same code as the shipped pair."""
    return miniature.pair


def test_target_and_draft_load_and_share_a_tokenizer(pair: Path) -> None:
    target, draft = (AutoModelForCausalLM.from_pretrained(pair / part) for part in ("target", "draft"))
    assert (target.config.num_hidden_layers, draft.config.num_hidden_layers) == (3, 1)
    assert target.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(pair / "draft")
    text = "def f(x):\n    return 'naïve — λ'\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.eos_token_id == target.config.eos_token_id == 0
    ids = torch.tensor([tokenizer(text).input_ids])
    assert target(ids).logits.shape == (*ids.shape, 300)


def test_command_line_trains_a_target(source: Path, tmp_path: Path) -> None:
    options = {name: str(value) for name, value in TINY.items()} | {"source": str(source), "source_licence": "MIT"}
    options |= {"work": str(tmp_path / "work"), "out": str(tmp_path / "out"), "tokens": "256", "layers": "1"}
    arguments = ["part=target", "pair=builtin", *(f"train.{name}={value}" for name, value in options.items())]
    done = Started(tmp_path / "said", module, "specbench.train", arguments, cwd=tmp_path)
    assert done.ended(120) == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["history"]["tokens_seen"] == 256
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert not list(tmp_path.rglob("*.log")), "a file that nobody asked for"


class Interrupting:
    """Batches that stop the run after some steps, by the signal a user or a scheduler would send."""

    def __init__(self, batches: PackedBatches, after: int):
        self.batches, self.after = batches, after

    def next(self, rows: int, length: int) -> torch.Tensor:
        if self.batches.step == self.after:
            os.kill(os.getpid(), 15)
        return self.batches.next(rows, length)

    def __getattr__(self, name: str) -> object:
        return getattr(self.batches, name)


@pytest.mark.parametrize("resume", [True, False])
def test_resumed_run_gives_the_weights_of_an_uninterrupted_one(resume: bool, tmp_path: Path) -> None:
    arrays = {"code": np.random.default_rng(0).integers(1, 300, 5_000)}
    options = TrainSettings(**TINY)

    def once(name: str, again: bool, stop_after: int | None) -> tuple[dict[str, torch.Tensor], bool]:
        model = new_llama(options, PartSettings(layers=1), 300)
        batches = PackedBatches(arrays, {"code": 1.0}, seed=3)
        chosen = batches if stop_after is None else Interrupting(batches, stop_after)
        schedule = Schedule(tokens=1_024, rows=2, length=64)
        loss = lambda ids: next_token_loss(model, ids, False)  # noqa: E731
        _, complete = train(model, loss, chosen, schedule, tmp_path / f"{name}.pt", again, name)
        return {key: value.clone() for key, value in model.state_dict().items()}, complete

    whole, complete = once("whole", False, None)
    assert complete
    _, complete = once("broken", False, 3)
    assert not complete
    # Starting a fresh run with a shorter budget instead of resuming must not pass for the same thing.
    continued, complete = once("broken", resume, None) if resume else once("other", False, 5)
    assert complete == resume
    assert all(torch.equal(whole[key], continued[key]) for key in whole) == resume


def test_draft_resumes_exactly(pair: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool of the target's own text is part of a checkpoint: a broken run goes on to the very same draft."""
    (tmp_path / "target").symlink_to(pair / "target")
    settings = settings_for("draft", source, tmp_path / "work", tmp_path / "draft")
    original = OwnTextBatches.next

    def interrupting(self: OwnTextBatches, rows: int, length: int) -> tuple[torch.Tensor, ...]:
        if self.step == 4:
            os.kill(os.getpid(), 15)
        return original(self, rows, length)

    with monkeypatch.context() as patched:
        patched.setattr(OwnTextBatches, "next", interrupting)
        assert not run(settings)["complete"]
    assert not (tmp_path / "draft").exists()
    settings.train.resume = True
    assert run(settings)["complete"]
    made, again = (AutoModelForCausalLM.from_pretrained(f / "draft").state_dict() for f in (pair, tmp_path))
    assert all(torch.equal(made[key], again[key]) for key in made)


def divergence(draft: torch.nn.Module, target: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        hidden = final_hidden(target, ids.clamp(min=0), False)
    return distillation_loss(draft, head_of(target), ids, hidden, autocast=False)


def test_distillation_lowers_the_divergence_from_the_target() -> None:
    options = TrainSettings(**TINY)
    target = new_llama(options, PartSettings(layers=2), 64).requires_grad_(False)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.mul_(3)
    draft = draft_from_layers(target, 1, [1])
    assert torch.equal(draft.model.layers[0].mlp.up_proj.weight, target.model.layers[1].mlp.up_proj.weight)
    assert float(divergence(target, target, torch.arange(8)[None])) == pytest.approx(0, abs=1e-3)
    batches = PackedBatches({"code": np.random.default_rng(1).integers(0, 64, 4_000)}, {"code": 1.0}, 0)
    held = PackedBatches({"code": np.random.default_rng(2).integers(0, 64, 4_000)}, {"code": 1.0}, 0).next(8, 64)
    before = float(divergence(draft, target, held).detach())
    optimizer = torch.optim.Adam(draft.parameters(), 3e-3)
    for _ in range(40):
        divergence(draft, target, batches.next(4, 64)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(divergence(draft, target, held).detach()) < 0.7 * before


def test_a_target_that_scales_its_logits_is_refused() -> None:
    """The stored hidden states give the target's distribution only through a plain LM head."""
    target = new_llama(TrainSettings(**TINY), PartSettings(layers=1), 64)
    check_head(target)
    target.register_forward_hook(lambda module, inputs, output: output.__setitem__("logits", 3 * output.logits))
    with pytest.raises(ValueError, match="scales or caps"):
        check_head(target)


def test_masked_positions_do_not_count() -> None:
    options = TrainSettings(**TINY)
    target, draft = (new_llama(options, PartSettings(layers=1), 64).requires_grad_(False) for _ in range(2))
    torch.nn.init.normal_(draft.lm_head.weight)
    ids = torch.tensor([[5, 6, 7, 8]])
    cut = torch.tensor([[5, 6, -1, -1]])
    assert float(divergence(draft, target, cut)) == pytest.approx(float(divergence(draft, target, ids[:, :2])), rel=1e-5)
    assert float(divergence(draft, target, ids)) != pytest.approx(float(divergence(draft, target, cut)), rel=1e-5)
    assert mask_after_end(torch.tensor([[0, 5, 6, 0, 7]]), 2, [0]).tolist() == [[0, 5, 6, 0, -1]]


@pytest.mark.parametrize("layers", [[0, 3], [0, 1]])
def test_layers_that_do_not_fit_are_refused(layers: list[int]) -> None:
    with pytest.raises(ValueError, match="copy_layers"):
        draft_from_layers(new_llama(TrainSettings(**TINY), PartSettings(layers=3), 64), 3 if layers == [0, 1] else 2, layers)


def test_batched_continuations_are_the_models_own_greedy_text(pair: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(pair / "target", dtype=torch.float32).eval()
    prompts = torch.tensor([[5, 6, 7, 8], [40, 41, 42, 43]])
    rows = continuations(model, prompts, 6, torch.zeros(2), torch.Generator())
    for row in rows:
        for position in range(4, 10):
            assert int(model(row[None, :position]).logits[0, -1].argmax()) == int(row[position])


def test_sampling_follows_the_temperature() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0]).repeat(20_000, 1)
    counts = torch.bincount(choose(logits, torch.full((20_000,), 0.7), torch.Generator().manual_seed(0)), minlength=3)
    assert torch.allclose(counts / 20_000, (logits[0] / 0.7).softmax(-1), atol=0.015)


def test_overlap_filter_finds_a_planted_prompt(tmp_path: Path) -> None:
    """A corpus file that quotes an evaluation prompt is removed; the same file without the quotation stays."""
    prompt = "Return the number of ways in which seven green frogs may cross a pond of nineteen lily pads"
    (tmp_path / "evaluation.jsonl").write_text(json.dumps({"task_id": "x/0", "turns": [prompt]}) + "\n")
    files = evaluation_files([tmp_path, tmp_path / "missing"])
    overlap = OverlapFilter(text for file in files for text in evaluation_texts(file))
    assert overlap.num_texts == 1
    package = Package("p", "1", "MIT")
    planted = FUNCTION.format(n=1) + f"# {prompt.upper()}, and more.\n"
    inputs = [(package, "p/planted.py", planted), (package, "p/clean.py", FUNCTION.format(n=2))]
    corpus = corpora.gather(iter(inputs), overlap)
    assert corpus.removed_for_overlap == ["p/planted.py (code)"]
    assert "p/clean.py" in {d.path for d in corpus.documents}
    assert not any(prompt.upper() in d.text for d in corpus.documents)


def test_corpus_drops_repeats_and_cuts_functions_out() -> None:
    package = Package("p", "1", "MIT")
    text = "class A:\n    x = 1\n\n" + "".join("    " + line + "\n" for line in FUNCTION.format(n=3).splitlines())
    corpus = corpora.gather(iter([(package, "p/a.py", text), (package, "p/b.py", text)]), OverlapFilter([]))
    assert {d.path for d in corpus.documents} == {"p/a.py"}
    (functions,) = (d for d in corpus.documents if d.stream == "functions")
    assert functions.text.startswith("def area_3(")
    counts = Counter(corpora.split_of(f"p/{n}.py") for n in range(5_000))
    assert 20 < counts["heldout"] < 90
    assert 100 < counts["prompts"] < 200


@pytest.mark.parametrize(
    ("meta", "allowed"),
    [
        ({"License-Expression": "MIT AND (Apache-2.0 OR BSD-3-Clause)"}, True),
        ({"License-Expression": "MIT AND GPL-3.0-only"}, False),
        ({"Classifier": ["License :: OSI Approved :: MIT License"]}, True),
        ({"Classifier": ["License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)"], "License": "MIT"}, False),
        ({"License": "Apache 2.0 License"}, True),
        ({"License": "Proprietary"}, False),
        ({}, False),
    ],
)
def test_only_stated_permissive_licences_pass(meta: dict[str, object], allowed: bool) -> None:
    class Metadata(dict):  # type: ignore[type-arg]
        def get_all(self, name: str) -> object:
            return self.get(name)

    assert (stated_licence(Metadata(meta)) is not None) == allowed


def test_batches_depend_on_the_seed_alone(source: Path, tmp_path: Path) -> None:
    corpus = corpora.gather(corpora.folder_files(source, "MIT"), OverlapFilter([]))
    tokenizer = train_tokenizer((d.text for d in corpus.documents), 300)
    first = write_tokens(corpus, tokenizer, tmp_path / "a", 0, 0)
    write_tokens(corpus, tokenizer, tmp_path / "b", 0, 0)
    write_tokens(corpus, tokenizer, tmp_path / "c", 1, 0)
    a, b, c = (np.load(tmp_path / name / "functions.train.npy") for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert first["packages"][0]["licence"] == "MIT"


def test_matrices_get_orthogonal_updates_the_rest_adam() -> None:
    """The first step: every singular value of a matrix' update is about its rate, every entry of Adam's is."""
    model = new_llama(TrainSettings(**TINY), PartSettings(layers=1), 64)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    next_token_loss(model, torch.arange(128).view(2, 64) % 64, autocast=False).backward()
    for optimizer in make_optimizers(model, matrix_lr=0.02, other_lr=0.004):
        optimizer.step()
    steps = {name: (p.detach() - before[name]) for name, p in model.named_parameters()}
    matrices = {name for name, p in before.items() if p.ndim == 2 and ".layers." in name}
    assert matrices and {"model.embed_tokens.weight", "model.norm.weight"} <= before.keys() - matrices
    for name in matrices:
        rows, columns = before[name].shape
        singular = torch.linalg.svdvals(steps[name] + 0.02 * 0.01 * before[name])  # the decay of the weights put back
        assert singular[0] < 1.3 * 0.02 * max(1.0, rows / columns) ** 0.5, name
    largest = float(steps["model.norm.weight"].abs().max())
    assert largest == pytest.approx(0.004, rel=1e-3), "Adam's first step is its rate"


def test_learning_rate() -> None:
    factors = [learning_rate_factor(p, 0.1, 0.4) for p in (0.0, 0.05, 0.3, 0.6, 0.8, 1.0)]
    assert factors == pytest.approx([0.02, 0.5, 1.0, 1.0, 0.5, 0.0])


def test_refining_writes_a_loadable_target(pair: Path, source: Path, tmp_path: Path) -> None:
    settings = settings_for("refined", source, tmp_path / "work", tmp_path / "out")
    settings.pair = PairConfig(target=str(pair / "target"))
    settings.parts["refined"] = PartSettings(kind="refine", layers=3, tokens=512, folder="target")
    report = run(settings)
    assert report["refined"]["repeated_share"]
    assert report["history"] == json.loads((pair / "target" / "training.json").read_text())["history"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 3


def test_repetitions_are_marked_and_made_unlikely() -> None:
    assert repeated([9, 9, 1, 2, 3, 4, 1, 2, 3, 4, 5], 2) == [False] * 7 + [True, False]
    assert repeated([1, 2, 3, 4, 1, 2, 3, 4, 5], 4) == [False] * 5  # a copy from the prompt is no repetition
    model = new_llama(TrainSettings(**TINY), PartSettings(layers=1), 64)
    ids = torch.arange(40).repeat(2, 1)
    marks = torch.full_like(ids, LIKELY)
    marks[1] = UNLIKELY

    def likelihood(row: int) -> float:
        log_p = model(ids).logits.log_softmax(-1)[row, :-1].gather(-1, ids[row, 1:, None])
        return float(log_p.detach().mean())

    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    shifted = torch.stack([ids[0], (ids[1] * 7 + 3) % 64])
    before = torch.log_softmax(model(shifted).logits, -1)[1, :-1].gather(-1, shifted[1, 1:, None]).mean().item()
    for _ in range(30):
        refining_loss(model, shifted, marks, 5.0, False).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = torch.log_softmax(model(shifted).logits, -1)[1, :-1].gather(-1, shifted[1, 1:, None]).mean().item()
    assert after < before - 0.5
    assert likelihood(0) > -3.0


def test_mixing_moves_along_the_line() -> None:
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    wanted = 0.7 * a.weight.detach() + 0.3 * b.weight.detach()
    mix(a, b, 0.3)
    assert torch.allclose(a.weight, wanted, atol=1e-6)


def test_distinct_share_tells_a_loop_from_a_text() -> None:
    assert distinct_share([1, 2, 3] * 40) == pytest.approx(3 / 117)
    assert distinct_share(list(range(40))) == 1.0
    assert distinct_share([1, 2]) is None


@pytest.mark.parametrize("draft_length", [1, 4])
def test_replay_agrees_with_the_formula(draft_length: int) -> None:
    """Independent acceptance with flat verification is what the formula assumes, so a long replay must come out the same."""
    drawn = np.random.default_rng(0).random((40, 2_000)) < 0.7
    speed = recorded.speculative_speedup(drawn.tolist(), draft_length, 0.2, lambda rows: 1.0)
    assert speed == pytest.approx(formulas.speedup_sequential(0.7, draft_length, 0.2), rel=0.02)
    by_position = recorded.acceptance_by_position(drawn.tolist(), draft_length)
    assert by_position == pytest.approx([0.7**n for n in range(1, draft_length + 1)], rel=0.03)


def test_asynchronous_replay_keeps_to_its_bounds() -> None:
    flat = lambda rows: 1.0  # noqa: E731
    perfect, hopeless = [[True] * 4_000], [[False] * 4_000]
    assert recorded.asynchronous_speedup(perfect, 16, 0.25, flat) == pytest.approx(formulas.bound_free_running(0.25), rel=0.01)
    assert recorded.asynchronous_speedup(perfect, 16, 0.05, flat) > 10  # limited by the look-ahead, not by the draft
    assert recorded.asynchronous_speedup(hopeless, 16, 0.25, flat) == pytest.approx(1 / 1.25, rel=0.01)
    drawn = (np.random.default_rng(1).random((20, 2_000)) < 0.7).tolist()
    assert recorded.asynchronous_speedup(drawn, 8, 0.2, flat) > recorded.speculative_speedup(drawn, 4, 0.2, flat)
    assert formulas.speedup_sequential(1.0, 4, 0.25) == pytest.approx(2.5)


def test_matches_are_what_drafting_in_rounds_accepts(pair: Path) -> None:
    """One pass over the text finds the same accepted runs as drafting token by token."""
    target, draft = (evaluate.load_part(pair / part) for part in ("target", "draft"))
    prompt = list(range(40, 60))
    written = evaluate.greedy_text(target, prompt, 40, set())
    found = evaluate.matches(draft, prompt, written)
    assert len(found) == 39
    for position in range(0, 39, 5):
        drafted = evaluate.greedy_text(draft, [*prompt, *written[: position + 1]], 3, set())
        kept = next((i for i, (a, b) in enumerate(zip(drafted, written[position + 1 :], strict=False)) if a != b), None)
        run = next((i for i, same in enumerate(found[position : position + 3]) if not same), None)
        assert kept == run


def test_card_says_what_was_measured(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECBENCH_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(evaluate, "DATASETS", ("humaneval",))
    settings = Settings(part="card", train=TrainSettings(out=str(pair), card_samples=2, new_tokens=12, threads=1))
    card = Path(run(settings)["card"]).read_text()
    facts = json.loads((pair / "card.json").read_text())
    assert facts["data"]["humaneval"]["num_prompts"] == 2
    for words in ("humaneval-standin", "| draft | 1 x 32 |", "| target | 3 x 32 |", "MIT", "not good for"):
        assert words in card
    settings.train.measure = False
    assert Path(run(settings)["card"]).read_text() == card


def test_a_datastore_holds_the_corpus_and_finds_its_text(pair: Path, source: Path, tmp_path: Path) -> None:
    settings = settings_for("target", source, tmp_path / "w", tmp_path / "store")
    settings.part, settings.parts["datastore"] = "datastore", PartSettings(kind="datastore", tokens=4000)
    settings.pair = PairConfig(target=str(pair / "target"), draft=str(pair / "draft"))
    facts = run(settings)
    store = Datastore.load(str(tmp_path / "store"), 300)
    assert facts["num_tokens"] == len(store.tokens) == len(store.order) <= 4003
    at = next(place for place in range(50, 200) if store.end_id not in store.tokens[place : place + 12])
    text = store.tokens[at : at + 12].tolist()
    length, first, last = store.find_longest(text[:8], longest=8, shortest=2)
    assert length == 8 and text[8] in store.continuations(length, first, last, 100, 4, 64)[0]


def test_wrong_options_are_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="part='tokens'"):
        run(Settings(part="tokens"))
    with pytest.raises(ConfigError, match="part=null: choose one of acceptance, card, draft"):
        settings_from({"part": None, "parts": {"draft": {}}})
    with pytest.raises(ConfigError, match=r"train\.source_licence"):
        run(settings_for("target", source, tmp_path / "w", tmp_path / "out", source_licence=""))
    settings = settings_for("draft", source, tmp_path / "w", tmp_path / "out")
    settings.train.out = None
    with pytest.raises(ConfigError, match=r"train\.out"):
        run(settings)


def test_autocast_auto_asks_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for able, expected in (
        ({"avx2": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert use_autocast("auto", cpu) is expected
        assert use_autocast(True, cpu) is True and use_autocast(False, cpu) is False
    assert use_autocast("auto", torch.device("cuda")) is True
    with pytest.raises(ValueError, match=r"train.autocast='on': choose auto, true or false"):
        use_autocast("on", cpu)


@pytest.mark.parametrize("bits", [1, 3, 4, 6])
def test_round_mantissa_is_the_nearest_of_the_values_that_remain(bits: int) -> None:
    pattern = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = pattern.view(torch.bfloat16)
    values = values[values.isfinite() & (values.abs() < 1e38) & (values.abs() > 1e-37)]
    rounded = round_mantissa(values, bits)
    assert int((rounded.view(torch.int16) & (2 ** (7 - bits) - 1)).abs().max()) == 0
    exact = values.double()
    step = 2.0 ** (exact.abs().log2().floor() - bits)  # distance of neighbours in a value's binade
    assert bool(((rounded.double() - exact).abs() <= step / 2).all())
    assert torch.equal(round_mantissa(rounded, bits), rounded)
    assert torch.equal(round_mantissa(-values, bits), -rounded)


def test_round_mantissa_of_all_bits_changes_nothing_and_none_is_refused() -> None:
    values = torch.randn(100).bfloat16()
    assert torch.equal(round_mantissa(values, 7), values)
    with pytest.raises(ValueError, match=r"bits=0: choose 1 to 7"):
        round_mantissa(values, 0)


def test_saved_weights_keep_the_bits_asked_for_and_load(tmp_path: Path) -> None:
    model = new_llama(TrainSettings(width=32, attention_heads=2, feed_forward=48), PartSettings(layers=2), 300)
    sizes = {}
    for bits in (7, 4):
        save_model(model, tmp_path / str(bits), mantissa_bits=bits)
        file = tmp_path / str(bits) / "model.safetensors"
        sizes[bits] = len(zlib.compress(file.read_bytes()))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / str(bits), dtype=torch.float32)
        for (name, before), after in zip(model.named_parameters(), loaded.parameters(), strict=True):
            torch.testing.assert_close(after, before, rtol=2.0 ** -(bits + 1) * 1.2, atol=0, msg=name)
    assert sizes[4] < 0.85 * sizes[7]


# ----------------------------------------------------------------------------------------------------- a chat model's own text
def test_chats_are_the_models_own_replies_with_its_states(pair: Path) -> None:
    """Prompts of unequal length in one batch, rows that end early and leave it: each as if it had been alone."""
    model = AutoModelForCausalLM.from_pretrained(pair / "target", dtype=torch.float32).eval()
    prompts = [[5, 6, 7, 8, 9], [40, 41, 42], [11, 12, 13, 14, 15, 16, 17]]
    alone = [
        continuations(model, torch.tensor([prompt]), 6, torch.zeros(1), torch.Generator())[0].tolist() for prompt in prompts
    ]
    end = alone[1][4]  # the second reply's second token
    writer = replies.writer_of(model, autocast=False)
    written = replies.replies(writer, prompts, 6, torch.zeros(3), torch.Generator(), {end})
    for prompt, whole, (text, states) in zip(prompts, alone, written, strict=True):
        reply = whole[len(prompt) : -1]
        kept = reply[: reply.index(end)] if end in reply else reply
        assert text == prompt + kept
        wanted = final_hidden(model, torch.tensor([text]), False)[0]
        assert torch.allclose(states.float(), wanted, rtol=0.01, atol=0.02)


def test_chat_prompts_follow_the_seed_and_hold_no_evaluation_text() -> None:
    package = Package("p", "1", "MIT")
    corpus = corpora.gather(iter([(package, "p/a.py", FUNCTION)]), OverlapFilter([]))
    free = chat_prompts(corpus, OverlapFilter([]), 200, 3)
    assert len(set(free)) == 200 and free == chat_prompts(corpus, OverlapFilter([]), 200, 3)
    assert free != chat_prompts(corpus, OverlapFilter([]), 200, 4)
    assert not any(FIELD.search(text.removesuffix("\\boxed{}.")) for text in free)
    planted = max((text for text in free if "boxed" in text), key=len)
    question = planted.split("\n")[0]
    assert planted not in chat_prompts(corpus, OverlapFilter([f"Some set: {question}"]), 200, 3)


def test_a_draft_and_heads_over_frequent_ids_are_trained_on_chats_and_run(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command makes them from the model's own chats alone: no forward of the target, a map, cards; both load."""
    ids = [list(range(start, start + 17)) for start in range(3, 60)]
    monkeypatch.setattr(chats, "prompt_ids", lambda options, tokenizer, folder: ids)
    options = TrainSettings(
        work=str(tmp_path / "work"), text="chat", chat_tokens=2000, generate_rows=32, new_tokens=24, threads=1, compile="off",
        optimizer="adam", autocast=False, device="cpu", weight_bits=4,
    )  # fmt: skip
    part = PartSettings(kind="draft", layers=1, copy_layers=[0], tokens=8000, length=64, rows=4, num_ids=40, init="layers")
    settings = Settings("chain", PairConfig(target=str(pair / "target")), options, {"chain": part})
    (tmp_path / "work").mkdir()
    folder = chats.chat_folder(options, str(target_identity(pair / "target")))
    folder.mkdir(parents=True)
    (folder / "sources.json").write_text("[]")
    settings.train.out = str(tmp_path / "draft")
    report = run(settings)
    assert report["num_ids"] == 40 and 0 < report["heldout_right"] <= 1
    assert "40 most frequent ids" in (tmp_path / "draft" / "README.md").read_text()
    spec = specify(
        PairConfig(target=str(pair / "target"), draft=str(tmp_path / "draft"), target_device="cpu", draft_device="cpu")
    )
    assert spec.draft is not None
    draft = load_model(spec.draft)
    made = chats.Chats.read(folder)
    assert made.tokens >= 1500 and draft.module.lm_head.ids.tolist() == frequent_ids(made.counts(draft.vocab_size), 40).tolist()
    head = PartSettings(kind="acceptance_head", tokens=1000, length=64, rows=4)
    both = PairConfig(target=str(pair / "target"), draft=str(tmp_path / "draft"), target_device="cpu", draft_device="cpu")
    options = replace(options, out=str(tmp_path / "acceptance"))
    made_on_chats = run(Settings("acceptance_head", both, options, {"acceptance_head": head}))
    assert made_on_chats["calibration"]["prompts"] == "chats that nothing was trained on"
    assert "chats of the target" in (tmp_path / "acceptance" / "README.md").read_text()
    load_heads(AcceptanceHead, tmp_path / "acceptance", TargetParts.of(draft.module, target_hash(spec.draft)))


def test_help_is_every_option_with_its_meaning() -> None:
    from specbench.train.__main__ import help_page

    page = help_page()
    for said in ('part: ""             # what to make', "tokens: null         # budget", "  draft: {kind"):
        assert said in page
    assert "\nhydra:" not in page

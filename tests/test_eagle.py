"""EAGLE: its cache against fresh computation, training's view against drafting's, exactness, shapes of trees."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from miniature import Miniature, settings_for
from transformers import AutoModelForCausalLM

from specbench.config.options import ConfigError
from specbench.config.schema import PairConfig
from specbench.engine.model import Model
from specbench.engine.request import Outcome
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw
from specbench.engine.tree import DraftTree, Evidence, Feedback
from specbench.method import Method
from specbench.methods.heads.eagle import Eagle, EagleDraft
from specbench.methods.heads.eagle.draft import FeatureDraft
from specbench.methods.heads.eagle.heads import EagleHeads
from specbench.parts.heads.base import TargetParts, build_heads
from specbench.parts.heads.stored import load_heads, save_heads
from specbench.parts.rules.rule import exact_rules
from specbench.train.__main__ import run as run_training
from specbench.train.settings import PartSettings

SAMPLED = SamplingLaw(temperature=0.8, top_p=0.95)


def own_text(module: Any, rows: int, length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [rows, length] that the target wrote greedily after random beginnings, and its features there."""
    ids = torch.randint(1, module.config.vocab_size, (rows, 4), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for _ in range(length - 4):
            ids = torch.cat([ids, module(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
        return ids, module(input_ids=ids, output_hidden_states=True).hidden_states[-1]


def made_heads(module: Any, *, seed: int = 0, **options: Any) -> EagleHeads:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_heads(EagleHeads, TargetParts.of(module), options).eval()


@pytest.fixture(scope="module")
def target() -> Any:
    return tiny.module("llama")


@pytest.fixture(scope="module")
def trained(target: Any) -> EagleHeads:
    """Heads that know some of the tiny target's text: drafts are then accepted now and then, deep ones too."""
    heads = made_heads(target, steps=2)
    ids, hidden = own_text(target, 48, 40)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=5e-3)
    heads.train()
    first = last = 0.0
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the noise on the features: unseeded, heads of some runs drafted too little to test
        for step in range(120):
            loss = heads.loss(ids, hidden)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            first, last = (float(loss.detach()), last) if step == 0 else (first, float(loss.detach()))
    assert last < 0.5 * first
    return heads.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(trained: EagleHeads, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("heads")
    save_heads(trained, path)
    return str(path)


def outputs(method: Method, around: Runtime, prompts: list[list[int]]) -> list[Outcome]:
    method.open(around)
    try:
        return [method.decode(tiny.request(around, prompt, str(i))) for i, prompt in enumerate(prompts)]
    finally:
        method.close()


PROMPTS = [tiny.prompt(n, seed=n) for n in (1, 2, 5, 17, 40)]


@pytest.mark.parametrize("law", [SamplingLaw(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_nodes": 10},
        {"num_nodes": 4, "top_k": 1, "draft_length": 4},
        {"num_nodes": 30, "top_k": 3, "draft_length": 3},
        {"num_nodes": 1},
    ],
)
def test_output_equals_autoregressive_decoding(target: Any, folder: str, law: SamplingLaw, options: dict[str, int]) -> None:
    around = tiny.runtime(Model.wrap(target), law=law, max_new_tokens=40)
    ours = outputs(Eagle(heads=folder, **options), around, PROMPTS)
    theirs = outputs(Method(), around, PROMPTS)
    assert [o.output_ids for o in ours] == [o.output_ids for o in theirs]
    rounds = [r for o in ours for r in o.rounds]
    assert sum(r.num_accepted for r in rounds) > 0.1 * len(rounds)  # or exactness would say nothing
    assert max(r.num_accepted for r in rounds) > (0 if options == {"num_nodes": 1} else 1)
    assert all(r.num_drafted <= options["num_nodes"] for r in rounds)
    assert all(r.draft_depth <= options.get("draft_length", 6) for r in rounds)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_architecture_with_untrained_heads(architecture: str, tmp_path: Path) -> None:
    module = tiny.module(architecture)
    save_heads(made_heads(module), tmp_path)
    around = tiny.runtime(Model.wrap(module), law=SAMPLED, max_new_tokens=20)
    ours = outputs(Eagle(heads=str(tmp_path), num_nodes=8), around, PROMPTS[:4])
    assert [o.output_ids for o in ours] == [o.output_ids for o in outputs(Method(), around, PROMPTS[:4])]


def test_shared_noise_finds_more_of_the_targets_samples(target: Any, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    around = tiny.runtime(Model.wrap(target), law=SamplingLaw(temperature=1.0), max_new_tokens=40)

    def accepted() -> int:
        return sum(r.num_accepted for o in outputs(Eagle(heads=folder, num_nodes=10), around, PROMPTS) for r in o.rounds)

    with_noise = accepted()
    monkeypatch.setattr("specbench.parts.drafts.choice.keyed_gumbel", lambda key, positions, size, device: torch.zeros(1, size))
    assert with_noise > 1.1 * accepted()


class Watched(EagleDraft):
    """Looks at every tree, and compares the draft's cache of committed rows with one computed afresh from the target."""

    def begin(self, request: Any, first_token: int, evidence: Evidence) -> None:
        self.worst, self.compared, self.trees = 0.0, 0, []
        self.text = [*request.prompt_ids, first_token]
        super().begin(request, first_token, evidence)

    def observe(self, feedback: Feedback) -> None:
        self.text += feedback.verdict.tokens
        super().observe(feedback)

    def propose(self, max_depth: int) -> DraftTree:
        tree = super().propose(max_depth)
        self.trees.append((tree, max_depth))
        if self.unfed is None and max_depth > 0:
            hidden = self.target.model.module(
                input_ids=torch.tensor([self.text[:-1]]), output_hidden_states=True
            ).hidden_states[-1][0]
            fresh = FeatureDraft(self.draft.heads, self.draft.vocab_size)
            fresh.start(len(self.text))
            root = fresh.extend(hidden, self.text[1:])
            assert self.num_true == fresh.length == len(self.text) - 1
            pairs = [(getattr(d, name)[:, : fresh.length]) for name in ("keys", "values") for d in (self.draft, fresh)]
            for ours, theirs in [(pairs[0], pairs[1]), (pairs[2], pairs[3]), (self.features, root)]:
                self.worst = max(self.worst, float((ours - theirs).abs().max() / theirs.abs().max()))
            self.compared += 1
        return tree


def watched(around: Runtime, folder: str, **options: Any) -> tuple[Method, Watched]:
    """The method, opened, and its drafter."""
    method = Eagle(heads=folder, **options)
    made: Any = method.drafter
    method.drafter = Watched(made.heads_name, made.draft_length, made.top_k, made.num_nodes)
    return tiny.opened(method, around), method.drafter


@pytest.mark.parametrize("seed", range(4))
def test_the_cache_after_rollbacks_is_a_fresh_one(target: Any, folder: str, seed: int) -> None:
    draw = random.Random(seed)
    options = {"top_k": draw.choice([1, 2, 4, 8]), "num_nodes": draw.choice([2, 6, 20]), "draft_length": draw.choice([2, 5])}
    around = tiny.runtime(Model.wrap(target), law=draw.choice([SamplingLaw(), SAMPLED]), max_new_tokens=30)
    method, draft = watched(around, folder, **options)
    for prompt in PROMPTS:
        outcome = method.decode(tiny.request(around, prompt, str(seed)))
        assert draft.compared >= len(outcome.rounds) - 1 and draft.worst < 1e-4
    method.close()


def test_a_missing_rollback_is_seen(target: Any, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The twin of the test above: guessed features that stay in the cache, as if they had been the target's.
    monkeypatch.setattr(FeatureDraft, "rollback", lambda self, length: None)
    around = tiny.runtime(Model.wrap(target), max_new_tokens=30)
    method, _ = watched(around, folder, num_nodes=10)
    with pytest.raises(AssertionError):
        method.decode(tiny.request(around, PROMPTS[3]))


def test_trees_respect_their_limits(target: Any, folder: str) -> None:
    around = tiny.runtime(Model.wrap(target), max_new_tokens=12)
    for options in ({"draft_length": 5, "top_k": 3, "num_nodes": 7}, {"draft_length": 2, "top_k": 2, "num_nodes": 50}):
        method, draft = watched(around, folder, **options)
        for prompt in PROMPTS:
            method.decode(tiny.request(around, prompt))
            for tree, max_depth in draft.trees:
                assert tree.depth <= min(options["draft_length"], max_depth) and len(tree.tokens) <= options["num_nodes"]
                assert all(len(siblings) <= options["top_k"] for siblings in tree.children())
                assert tree.num_forwards <= options["draft_length"]
                assert (len(tree.tokens) == 0) == (max_depth == 0)
        method.close()


def test_eos_inside_an_accepted_path(target: Any, folder: str) -> None:
    around = tiny.runtime(Model.wrap(target), max_new_tokens=40)
    method, inside = tiny.opened(Eagle(heads=folder, num_nodes=10), around), 0
    for prompt in PROMPTS[1:3]:
        request = tiny.request(around, prompt)
        whole = method.decode(request).output_ids
        for token in set(whole):
            ended = method.decode(replace(request, eos_ids=frozenset({token})))
            assert (ended.output_ids, ended.finish_reason) == (whole[: whole.index(token) + 1], "eos")
            inside += bool(ended.rounds) and ended.rounds[-1].num_emitted == ended.rounds[-1].num_accepted
    assert inside > 0


# The module in training and at work.


def test_drafting_computes_what_training_unrolls(target: Any, trained: EagleHeads) -> None:
    ids, hidden = own_text(target, 1, 20, seed=3)
    with torch.no_grad():
        unrolled = trained.unrolled(ids, hidden, 4)
    for anchor in (0, 5, 13):
        draft = FeatureDraft(trained, tiny.VOCAB)
        draft.start(40)
        features = draft.extend(hidden[0, : anchor + 1], ids[0, 1 : anchor + 2].tolist())
        torch.testing.assert_close(features[0], unrolled[0][0, anchor], atol=1e-4, rtol=1e-4)
        for step in range(1, 4):
            # Beside the text's token two others, that must not disturb it; the right one stands in another place every time.
            text = int(ids[0, anchor + 1 + step])
            tokens = [1, 2, 3]
            tokens[step - 1] = text
            parents = [max(step - 2, 0)] * 3
            features = draft.descend(features[parents], tokens, parents)
            torch.testing.assert_close(features[step - 1], unrolled[step][0, anchor + step], atol=1e-4, rtol=1e-4)


def test_a_tree_row_that_sees_its_siblings_is_seen(target: Any, trained: EagleHeads, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = FeatureDraft._attend
    monkeypatch.setattr(FeatureDraft, "_attend", lambda self, inner, query, mask: attend(self, inner, query, None))
    with pytest.raises(AssertionError):
        test_drafting_computes_what_training_unrolls(target, trained)


def test_ranks_say_where_drafting_put_the_text(target: Any, trained: EagleHeads) -> None:
    ids, hidden = own_text(target, 3, 16, seed=5)
    ids[1, 11:] = -1
    with torch.no_grad():
        ranks = trained.ranks(ids, hidden)
    assert ranks.shape == (trained.max_depth, 3, 16)
    for row, length in ((0, 16), (1, 11)):
        for anchor in range(length):
            draft = FeatureDraft(trained, tiny.VOCAB)
            draft.start(40)
            for depth in range(1, trained.max_depth + 1):
                place = anchor + 1 + depth  # of the drafted token
                if place >= length:
                    assert ranks[depth - 1, row, anchor] == -1
                    continue
                if depth == 1:
                    features = draft.extend(hidden[row, : anchor + 1], ids[row, 1 : anchor + 2].tolist())
                else:
                    features = draft.descend(features, [int(ids[row, place - 1])], [0])
                scores = draft.logits(features)[0]
                assert int(ranks[depth - 1, row, anchor]) == int((scores > scores[ids[row, place]]).sum())


def test_training_for_several_steps_helps_deep_drafts(target: Any) -> None:
    accuracy = {}
    ids, hidden = own_text(target, 48, 40)
    for steps in (1, 4):
        heads = made_heads(target, steps=steps, noise=0.0, depths=4).train()
        optimizer = torch.optim.AdamW(heads.parameters(), lr=5e-3)
        for _ in range(40):
            heads.loss(ids, hidden).backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            accuracy[steps] = (heads.eval().ranks(ids, hidden)[3] == 0).float().mean().item()
    assert accuracy[4] > accuracy[1]


def test_loss_ignores_what_stands_behind_the_text(target: Any) -> None:
    heads = made_heads(target, noise=0.5)  # noise is for training alone: the same loss twice
    ids, hidden = own_text(target, 4, 20)
    ids[2, 9:] = -1
    spoiled = hidden.clone()
    spoiled[2, 9:] = 7.0
    torch.testing.assert_close(heads.loss(ids, hidden), heads.loss(ids, spoiled))
    spoiled[2, 8] = 7.0
    assert abs(float((heads.loss(ids, hidden) - heads.loss(ids, spoiled)).detach())) > 1e-3


def test_training_in_bfloat16_products_is_the_same_training(target: Any) -> None:
    heads = made_heads(target, noise=0.0)
    ids, hidden = own_text(target, 4, 20)
    with torch.autocast("cpu", torch.bfloat16):
        rough = heads.loss(ids, hidden.bfloat16())
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, heads.loss(ids, hidden), rtol=0.05, atol=0.0)
    rough.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in heads.parameters())


def test_a_perfect_draft_has_no_loss(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = made_heads(target, noise=0.0)
    ids, hidden = own_text(target, 2, 12)
    perfect = [torch.cat([hidden[:, 1:], hidden[:, :1]], dim=1)] * 3
    monkeypatch.setattr(heads, "unrolled", lambda *arguments: perfect)
    assert float(heads.loss(ids, hidden)) == pytest.approx(0.0, abs=1e-6)


def test_the_output_starts_as_the_targets_norm() -> None:
    for architecture in ("llama", "gemma3", "gpt2"):
        module = tiny.module(architecture)
        parts = TargetParts.of(module)
        assert parts.norm is not None
        with torch.no_grad():
            for parameter in parts.norm.parameters():
                parameter += 0.3 * torch.randn(parameter.shape)
            x = torch.randn(5, 32)
            x = x - x.mean(-1, keepdim=True)  # where LayerNorm and RMSNorm are the same
            heads = made_heads(module)
            ours = torch.nn.functional.rms_norm(x, (32,)) * heads.out_gain + heads.out_bias
            torch.testing.assert_close(ours, parts.norm(x), atol=1e-3, rtol=1e-3)


# Files, options.


def test_saved_heads_come_back_and_belong_to_one_target(target: Any, trained: EagleHeads, folder: str) -> None:
    again = load_heads(EagleHeads, Path(folder), TargetParts.of(target))
    assert again.options == trained.options
    assert all(torch.equal(a, b.bfloat16().float()) for a, b in zip(again.parameters(), trained.parameters(), strict=True))
    stored = json.loads((Path(folder) / "heads.json").read_text())
    assert not any("lm_head" in name or "embed" in name for name in trained.state_dict()) and stored["family"] == "eagle"


def test_heads_of_another_target_are_refused(target: Any, tmp_path: Path) -> None:
    parts = TargetParts.of(target, sha256="a" * 64)
    save_heads(build_heads(EagleHeads, parts, {}), tmp_path)
    load_heads(EagleHeads, tmp_path, parts)
    for other in (TargetParts.of(target, sha256="b" * 64), TargetParts.of(tiny.module("llama", hidden=64))):
        with pytest.raises(ConfigError) as error:
            load_heads(EagleHeads, tmp_path, other)
        assert error.value.key == "method.heads"


def calibrated(folder: str, to: Path, accuracies: list[list[float]] | None) -> str:
    shutil.copytree(folder, to)
    description = json.loads((to / "heads.json").read_text())
    description["calibration"] = {} if accuracies is None else {"accuracies": accuracies}
    (to / "heads.json").write_text(json.dumps(description))
    return str(to)


@pytest.mark.parametrize(("per_row", "size"), [(0.0, 3 + 9), (0.35, 2), (10.0, 1)])
def test_the_automatic_size_follows_the_cost_of_rows(
    target: Any, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_row: float, size: int
) -> None:
    costs = {n: 1 + per_row * n for n in (1, 64)}
    monkeypatch.setattr(
        "specbench.methods.heads.eagle.measure_costs", lambda _, steps: (costs, [step() or 0.1 for step in steps])
    )
    heads = calibrated(folder, tmp_path / "heads", [[0.7, 0.1, 0.05, 0.0], [0.6, 0.2, 0.05, 0.0], [0.5]])
    around = tiny.runtime(Model.wrap(target))
    method = tiny.opened(Eagle(heads=heads, draft_length=2), around)
    assert method.max_nodes == method.facts()["num_nodes"] == size
    assert (method.facts()["best_num_nodes"] == 0) == (per_row == 10.0)
    drafted = [r.num_drafted for r in method.decode(tiny.request(around, PROMPTS[2])).rounds]
    assert max(drafted) == size


@pytest.mark.parametrize("top_k", [1, 8])
def test_the_automatic_depth_follows_the_cost_of_a_level(
    target: Any, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top_k: int
) -> None:
    costs = {n: 1 + 0.01 * n for n in (1, 64)}
    heads = calibrated(folder, tmp_path / "heads", [[0.7, 0.1, 0.05, 0.0], [0.6, 0.2, 0.05, 0.0], [0.5]])
    around = tiny.runtime(Model.wrap(target))
    for seconds, levels in (([0.1, 0.1, 0.1], 3), ([0.1, 0.2, 1.0], 2), ([0.1, 9.0, 9.0], 1)):
        monkeypatch.setattr(
            "specbench.methods.heads.eagle.measure_costs",
            lambda _, steps, seconds=seconds: (costs, [step() or seconds[step.args[0] - 1] for step in steps]),
        )
        method = tiny.opened(Eagle(heads=heads, top_k=top_k), around)
        assert method.facts()["levels"] == levels
        draft: Any = method.drafter
        draft.size = draft.shape.num_nodes = (
            200  # more than is grown: the best nodes alone may all lie higher up, where these heads are unsure
        )
        rounds = method.decode(tiny.request(around, PROMPTS[2])).rounds
        assert max(r.draft_depth for r in rounds) == levels


def test_an_automatic_size_needs_measured_accuracies(target: Any, folder: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.num_nodes"):
        Eagle(heads=calibrated(folder, tmp_path / "heads", None)).open(tiny.runtime(Model.wrap(target)))
    with pytest.raises(ConfigError, match="auto or an integer"):
        Eagle(num_nodes="many")
    with pytest.raises(ConfigError, match=r"method\.top_k"):
        Eagle(top_k="auto")  # type: ignore[arg-type]


def test_training_end_to_end(miniature: Miniature, tmp_path: Path) -> None:
    """The command makes heads for a target that it made: stored with the target's hash, measured, better than at the start."""
    settings = settings_for("heads", miniature.source, miniature.work, tmp_path / "heads")
    settings.pair = PairConfig(target=str(miniature.pair / "target"), draft=None)
    settings.parts["heads"] = PartSettings(kind="heads", tokens=4_096, length=64, rows=4)
    settings.method, settings.heads = {"_target_": "specbench.methods.heads.eagle.Eagle"}, {"steps": 2, "depths": 3}
    report = run_training(settings)
    assert report["complete"] and report["family"] == "eagle" and report["options"]["steps"] == 2
    calibration = report["calibration"]
    assert len(calibration["accuracies"]) == len(calibration["acceptance_by_depth"]) == 3
    assert "| 3 |" in (tmp_path / "heads" / "README.md").read_text()

    module = AutoModelForCausalLM.from_pretrained(miniature.pair / "target", dtype=torch.float32).eval()
    stored = json.loads((tmp_path / "heads" / "heads.json").read_text())
    assert len(stored["target"]["sha256"]) == 64
    heads = load_heads(EagleHeads, tmp_path / "heads", TargetParts.of(module, stored["target"]["sha256"]))
    ids, hidden = own_text(module, 4, 30)
    untrained = build_heads(EagleHeads, TargetParts.of(module), {"steps": 2, "depths": 3}).eval()
    with torch.no_grad():
        assert heads.loss(ids, hidden) < untrained.loss(ids, hidden)
    around = tiny.runtime(Model.wrap(module), max_new_tokens=24)
    ours = outputs(Eagle(heads=str(tmp_path / "heads"), num_nodes=6), around, [[5, 6, 7]])
    assert [o.output_ids for o in ours] == [o.output_ids for o in outputs(Method(), around, [[5, 6, 7]])]


@pytest.mark.parametrize("rule", ["ratio", "typical", "recursive_without_replacement", "k_seq", "lockstep_ratio", "no such"])
def test_rules_for_drawn_drafts_are_refused(rule: str) -> None:
    with pytest.raises(ConfigError, match="possible for this draft"):
        Eagle(rule=rule)
    assert {"greedy_match", "sample_match", "delta"} <= set(exact_rules(trees=True))


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 0), ("noise", -1.0), ("attention_heads", 3), ("feed_forward", "big"), ("depth", 2)]
)
def test_wrong_head_options_are_named(target: Any, name: str, value: object) -> None:
    with pytest.raises(ConfigError) as error:
        build_heads(EagleHeads, TargetParts.of(target), {name: value})
    assert error.value.key == f"heads.{name}"


def test_a_target_that_takes_chains_only(folder: str) -> None:
    model = tiny.model("llama")
    model.tree_refusal = "its local attention counts rows, not depth"
    with pytest.raises(ConfigError, match=r"method\.top_k"):
        Eagle(heads=folder, num_nodes=10).open(tiny.runtime(model))
    Eagle(heads=folder, top_k=1, num_nodes=4).open(tiny.runtime(model))

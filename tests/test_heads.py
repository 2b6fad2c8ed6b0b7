"""Trained heads: the contract, training by the command, loading, and decoding with what was trained."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from miniature import TINY, Miniature
from safetensors.torch import load_file, save_file
from torch import nn

from specbench.check import FAIL, GREEDY, PASS, SAMPLED, Bench
from specbench.check.identity import greedy_identity, sampled_identity
from specbench.check.law import sampled_law
from specbench.check.ranks import drafted_ranks
from specbench.check.tiny import PROMPTS, make_tiny_pair
from specbench.check.tiny_heads import make_tiny_heads, with_tiny_heads
from specbench.config.options import ConfigError
from specbench.config.paths import MODELS_DIR
from specbench.config.specs import ModelSpec, PairSpec
from specbench.engine.backends.native import build
from specbench.measure.records.provenance import target_identity
from specbench.methods.heads.eagle.heads import EagleHeads
from specbench.methods.heads.hydra import HydraHeads
from specbench.methods.heads.medusa import MC_SIM_7B_63, Medusa, MedusaHeads
from specbench.pair import packaged
from specbench.pair.load import load_model
from specbench.parts.heads import files
from specbench.parts.heads.base import Heads, TargetParts, build_heads, rank_of, shifted
from specbench.parts.heads.files import find_heads, target_hash
from specbench.parts.heads.loss import depth_loss
from specbench.parts.heads.stored import DESCRIPTION, WEIGHTS, load_heads, save_heads
from specbench.parts.shapes.plan import TreePlan
from specbench.parts.shapes.static import node_probabilities
from specbench.train.__main__ import main as train_command
from specbench.train.calibrate import TOP, calibrate
from specbench.train.heads import heads_class_of

FAMILIES = [MedusaHeads, HydraHeads]
NODES = {
    "medusa": {"_target_": "specbench.methods.heads.medusa.Medusa"},
    "hydra": {"_target_": "specbench.methods.heads.hydra.Hydra"},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> PairSpec:
    return make_tiny_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def parts() -> TargetParts:
    return TargetParts.of(tiny.module("llama", seed=3), "a" * 64)


def noisy(heads: Any) -> Any:
    """The same heads with every parameter disturbed, so that no two of them agree by being new."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return heads


# ------------------------------------------------------------------------------------------------ the contract
@pytest.mark.parametrize("cls", FAMILIES)
@pytest.mark.parametrize("own_lm_head", [False, True])
def test_saved_heads_come_back_without_the_target(cls: Any, own_lm_head: bool, parts: TargetParts, tmp_path: Path) -> None:
    heads = noisy(build_heads(cls, parts, {"num_heads": 3, "num_layers": 2, "own_lm_head": own_lm_head}))
    heads.calibration = {"accuracies": [[0.5]]}
    save_heads(heads, tmp_path)
    again = load_heads(cls, tmp_path, parts)
    assert again.options == heads.options and again.calibration == heads.calibration
    ids, hidden = torch.arange(12)[None], torch.randn(1, 12, parts.width)
    assert torch.allclose(again.loss(ids, hidden), heads.loss(ids, hidden), rtol=0.02)  # bfloat16 in between
    assert not any(p.requires_grad for p in again.parameters())
    shapes = [tuple(value.shape) for value in load_file(tmp_path / WEIGHTS).values()]
    assert shapes.count((parts.vocab_size, parts.width)) == (3 if own_lm_head else 0)
    assert all(p.data_ptr() != q.data_ptr() for p in heads.parameters() for q in (parts.lm_head.weight, parts.embedding.weight))


@pytest.mark.parametrize("cls", FAMILIES)
def test_every_head_has_parameters_of_its_own(cls: Any, parts: TargetParts) -> None:
    """Moving one parameter moves no other, and each of them matters to some depth."""
    heads = noisy(build_heads(cls, parts, {"num_layers": 3, "own_lm_head": True}))
    names = dict(heads.named_parameters(remove_duplicate=False))
    assert len({p.data_ptr() for p in names.values()}) == len(names)
    heads.loss(torch.arange(12)[None], torch.randn(1, 12, parts.width)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in names.values())


@pytest.mark.parametrize("cls", [*FAMILIES, EagleHeads])
def test_heads_over_some_ids_say_nothing_of_others(cls: Any, parts: TargetParts, tmp_path: Path) -> None:
    """The map comes back with them; ranks are those among its ids, and a token outside it is never drafted."""
    ids = torch.arange(1, parts.vocab_size, 3)
    heads = noisy(build_heads(cls, parts.over(ids), {}))
    save_heads(heads, tmp_path)
    again = load_heads(cls, tmp_path, parts)
    assert again.target.reduced is not None and again.target.reduced.ids.tolist() == ids.tolist()
    text, hidden = torch.arange(24)[None], torch.randn(1, 24, parts.width)
    assert torch.allclose(again.loss(text, hidden), heads.loss(text, hidden), rtol=0.05)
    ranks = again.ranks(text, hidden)[0, 0]
    for place, rank in enumerate(ranks.tolist()):
        token = place + 2
        expected_inside = token % 3 == 1 and token < 24
        assert (0 <= rank < len(ids)) == expected_inside and (token < 24 or rank == -1)
    logits = again.target.whole(again.target.guess(hidden))
    assert logits.isfinite().all(0).all(0).nonzero()[:, 0].tolist() == ids.tolist()
    with pytest.raises(ValueError, match="not ascending"):
        parts.over([2, 1])


@pytest.mark.parametrize("node", [*NODES.values(), {"_target_": "specbench.methods.heads.eagle.Eagle", "num_nodes": 6}])
def test_heads_over_some_ids_are_exact(node: dict[str, Any], pair: PairSpec, tmp_path: Path) -> None:
    module = load_model(pair.target, pair.vocab_size).module
    parts = TargetParts.of(module, target_hash(pair.target))
    cls = heads_class_of(node)
    heads = noisy(build_heads(cls, parts.over(range(0, parts.vocab_size, 2)), {}))
    heads.calibration = {"accuracies": [[0.4, 0.2, 0.1]] * heads.max_depth}
    save_heads(heads, tmp_path)
    bench = Bench({**node, "heads": str(tmp_path)}, pair, PROMPTS)
    try:
        for check in (greedy_identity, sampled_identity, drafted_ranks):
            assert check(bench).status == PASS, check(bench).detail
    finally:
        bench.close()


def test_tied_heads_are_not_saved(parts: TargetParts, tmp_path: Path) -> None:
    heads = MedusaHeads(parts, num_heads=2)
    heads.layers[1] = heads.layers[0]
    with pytest.raises(RuntimeError, match="share parameters"):
        save_heads(heads, tmp_path)


@pytest.mark.parametrize(
    ("change", "wording"),
    [
        ({"sha256": "b" * 64}, "b{64}"),
        ({"width": 33}, "width 33"),
        ({"vocab_size": 65}, "vocab_size 65"),
    ],
)
def test_heads_of_another_target_are_refused(change: dict[str, Any], wording: str, parts: TargetParts, tmp_path: Path) -> None:
    save_heads(MedusaHeads(parts), tmp_path)
    load_heads(MedusaHeads, tmp_path, parts)
    description = json.loads((tmp_path / DESCRIPTION).read_text())
    description["target"] |= change
    (tmp_path / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(ConfigError, match=wording) as caught:
        load_heads(MedusaHeads, tmp_path, parts)
    assert caught.value.key == "method.heads"


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        (WEIGHTS, lambda data: None),
        (WEIGHTS, lambda data: data[:-40]),
        (WEIGHTS, lambda data: data[:100]),
        (WEIGHTS, lambda data: data[:3] + bytes([data[3] ^ 0x40]) + data[4:]),
        (WEIGHTS, lambda data: data.replace(b"layers.0", b"layers.9", 1)),
        (DESCRIPTION, lambda data: b""),
        (DESCRIPTION, lambda data: data[:60]),
        (DESCRIPTION, lambda data: b"[]"),
        (DESCRIPTION, lambda data: data.replace(b'"target"', b'"targat"')),
        (DESCRIPTION, lambda data: data.replace(b'"num_heads"', b'"num_hands"')),
    ],
)
def test_damaged_heads_are_refused_in_one_line(file: str, damage: Any, parts: TargetParts, tmp_path: Path) -> None:
    save_heads(MedusaHeads(parts), tmp_path)
    load_heads(MedusaHeads, tmp_path, parts)  # the twin
    data = damage((tmp_path / file).read_bytes())
    (tmp_path / file).write_bytes(data) if data is not None else (tmp_path / file).unlink()
    with pytest.raises(ConfigError) as caught:
        load_heads(MedusaHeads, tmp_path, parts)
    assert caught.value.key in ("method.heads", "heads.num_hands") and "\n" not in str(caught.value)


def test_heads_of_another_family_are_refused(parts: TargetParts, tmp_path: Path) -> None:
    save_heads(MedusaHeads(parts), tmp_path)
    with pytest.raises(ConfigError, match="medusa heads; the method needs hydra"):
        load_heads(HydraHeads, tmp_path, parts)


def test_where_there_are_no_heads_the_command_is_named(tmp_path: Path) -> None:
    for name in (None, "./nowhere", "builtin:heads_nothing", "", 3):
        with pytest.raises(ConfigError) as caught:
            find_heads("medusa", name, "somebody/model")
        assert caught.value.key == "method.heads"
    with pytest.raises(ConfigError, match=r"specbench.train part=heads method=medusa"):
        find_heads("medusa", None, "somebody/model")
    with pytest.raises(ConfigError, match=r"method=<as here> allow_targets=<as here>"):  # a plugin's family is no method's name
        find_heads("of_a_plugin", None, "somebody/model")
    assert find_heads("medusa", str(tmp_path), "somebody/model") == tmp_path


@pytest.mark.parametrize("family", ["eagle", "hydra", "medusa"])
def test_shipped_heads_are_found_by_their_targets_identity(family: str) -> None:
    builtin = target_identity(MODELS_DIR / "builtin" / "target")
    for pair, sha256 in (("builtin", builtin), ("smollm2", packaged._FILE_SHA256)):
        wanted = MODELS_DIR / pair / f"heads_{family}"
        assert find_heads(family, None, "a copy of it", sha256=sha256) == wanted
        assert find_heads(family, f"{pair}:heads_{family}", "any") == wanted
    with pytest.raises(ConfigError, match="somebody/model has none"):
        find_heads(family, None, "somebody/model", sha256="0" * 64)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"target": null}'])
def test_damaged_shipped_heads_are_named(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MODELS_DIR", tmp_path)
    folder = tmp_path / "smollm2" / "heads_medusa"
    folder.mkdir(parents=True)
    (folder / "heads.json").write_text(text)
    with pytest.raises(ConfigError, match=r"method\.heads=.*heads_medusa.*(cannot be read|damaged)"):
        find_heads("medusa", None, "somebody/model", sha256="0" * 64)


@pytest.mark.parametrize("cls", FAMILIES)
@pytest.mark.parametrize(
    ("name", "value"),
    [("num_heads", 0), ("num_layers", True), ("own_lm_head", 1), ("decay", 0), ("objective", "x"), ("wrong", 1)],
)
def test_wrong_options_of_heads_are_named(cls: Any, name: str, value: object, parts: TargetParts) -> None:
    with pytest.raises(ConfigError) as caught:
        build_heads(cls, parts, {name: value})
    assert caught.value.key == f"heads.{name}"


# ------------------------------------------------------------------------------------------------ loss and measures
def test_ranks_and_shifts() -> None:
    logits = torch.tensor([[0.1, 3.0, 2.0, 3.0]]).expand(5, 4)
    assert rank_of(logits, torch.tensor([1, 3, 2, 0, -1])).tolist() == [0, 1, 2, 3, -1]
    assert shifted(torch.tensor([[5, 6, 7]]), 2).tolist() == [[7, -1, -1]]
    assert shifted(torch.tensor([[5, 6, 7]]), 9).tolist() == [[-1, -1, -1]]


def test_padding_is_never_token_zero(parts: TargetParts) -> None:
    """What stands behind a text's end changes neither loss nor ranks, whatever the hidden states there are."""
    ids = torch.randint(1, 60, (2, 14), generator=torch.Generator().manual_seed(1))
    ids[1, 9:] = -1
    hidden = torch.randn(2, 14, parts.width, generator=torch.Generator().manual_seed(2))
    other = hidden.clone()
    other[1, 9:] = 17.0
    for cls in FAMILIES:
        heads = noisy(build_heads(cls, parts, {}))
        assert torch.equal(heads.loss(ids, hidden), heads.loss(ids, other))
        assert torch.equal(heads.ranks(ids, hidden), heads.ranks(ids, other))
        ranks = heads.ranks(ids, hidden)
        for depth in range(1, heads.max_depth + 1):
            assert (ranks[depth - 1] >= 0).sum(1).tolist() == [14 - 1 - depth, 9 - 1 - depth]
        padded_as_zero = ids.clamp(min=0)
        assert not torch.equal(heads.loss(ids, hidden), heads.loss(padded_as_zero, hidden))  # the twin: zero would count


def test_the_loss_is_least_for_the_targets_own_law(parts: TargetParts) -> None:
    """Soft: a head that says what the target says at t + k loses nothing; depths weigh decay^k."""
    ids = torch.arange(10)[None]
    hidden = torch.randn(1, 10, parts.width, generator=torch.Generator().manual_seed(4))

    def right(depth: int) -> torch.Tensor:
        return parts.lm_head(nn.functional.pad(hidden[:, depth:], (0, 0, 0, depth)))

    def loss(logits: Any, depths: Any, objective: str = "soft") -> float:
        return float(depth_loss(logits, depths, ids, hidden, parts, 0.5, objective))

    assert loss(right, (1, 2)) == pytest.approx(0.0, abs=1e-6)
    shifted_by_one = lambda k: right(k - 1)  # noqa: E731 (the error of a head that is one place off)
    assert loss(shifted_by_one, (1, 2)) > 0.1
    one, two = loss(shifted_by_one, (1,)), loss(shifted_by_one, (2,))
    assert loss(shifted_by_one, (1, 2)) == pytest.approx((0.5 * one + 0.25 * two) / 0.75, rel=1e-5)
    tokens = ids[0, 2:]
    wanted = nn.functional.cross_entropy(right(1)[0, :-2], tokens)
    assert loss(right, (1,), "hard") == pytest.approx(float(wanted), rel=1e-5)


class Oracle(Heads):
    """Ranks that are known beforehand: depth 1 always right, depth 2 second best, depth 3 beyond the ranks that are kept."""

    family = "oracle"
    max_depth = 3

    def loss(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.sum() * 0

    def ranks(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.where(shifted(ids, 1 + k) >= 0, r, -1) for k, r in ((1, 0), (2, 1), (3, TOP))])


def test_calibration_counts_ranks_behind_the_prompt(parts: TargetParts) -> None:
    ids = torch.randint(0, 60, (3, 20))
    ids[2, 12:] = -1
    measured = calibrate(Oracle(parts), tiny.module("llama", seed=3), ids, prompt_tokens=8)
    first, second, third = measured["accuracies"]
    assert (first[0], second[0], second[1], sum(third)) == (1.0, 0.0, 1.0, 0.0)
    assert measured["acceptance_by_depth"] == [1.0, 0.0, 0.0]
    assert measured["num_positions"] == 2 * 11 + 3  # from h[7] on, up to the last token that has one two places on


# ------------------------------------------------------------------------------------------------ trees
def test_the_published_tree_has_its_shape() -> None:
    assert [sum(len(node) == depth for node in MC_SIM_7B_63) for depth in (1, 2, 3, 4)] == [10, 28, 23, 2]
    assert len(set(MC_SIM_7B_63)) == 63
    TreePlan(MC_SIM_7B_63, torch.device("cpu"))


def test_a_plan_fills_every_node_with_its_parents_candidate() -> None:
    plan = TreePlan([(0,), (2,), (0, 1), (2, 0), (2, 1), (2, 1, 0)], torch.device("cpu"))
    assert plan.parents == [-1, -1, 0, 1, 1, 4]
    assert [level.above.tolist() for level in plan.levels] == [[0], [0, 1], [2]]
    assert [level.parent.tolist() for level in plan.levels] == [[0, 0], [0, 1, 1], [0]]
    assert plan.tree([7, 8], 1, 1).parents == [-1, -1]
    assert plan.tree([1, 2, 3, 4, 5], 2, 2).parents == [-1, -1, 0, 1, 1]
    assert TreePlan([(0,), (0, 0)], torch.device("cpu")).tree([4, 5], 2, 1).is_chain
    assert [level.width for level in plan.levels] == [3, 2, 1]
    for level, rows in ((plan.levels[0], [[5, 6, 7]]), (plan.levels[1], [[5, 6], [7, 8]]), (plan.levels[1], [[5, 6]])):
        wanted = [
            rows[parent if len(rows) > 1 else 0][choice] for parent, choice in zip(level.parent, level.choice, strict=True)
        ]
        assert level.picked([*itertools.chain(*rows)]) == level.pick(torch.tensor(rows)).tolist() == wanted


class Elsewhere(torch.Tensor):
    """As if it lay on a device."""

    is_cpu = False


def test_of_equal_scores_the_smaller_id_fills_the_first_node(pair: PairSpec, heads_folder: Path, monkeypatch: Any) -> None:
    """Natively, as `rank_of` and the target's own choice have it, among all ids or some; a device fills the same nodes."""
    monkeypatch.setattr(build, "loaded", [build.library()])
    bench = bench_of("hydra", pair, heads_folder, tree=[[0], [1], [2], [0, 0], [1, 0], [1, 1]])
    drafter: Any = bench.method(GREEDY).drafter
    vocab_size = drafter.num_guessed
    coarse = torch.randint(3, (2, vocab_size), generator=torch.Generator().manual_seed(0)).float()
    ids = torch.arange(0, 2 * vocab_size, 2)
    for reduced in (None, SimpleNamespace(ids=ids)):
        monkeypatch.setattr(drafter.heads, "target", replace(drafter.heads.target, reduced=reduced))
        for level, logits in zip(drafter.plan.levels, (coarse[:1], coarse), strict=True):
            drafter._tokens, drafter._unread = [], []
            wanted = level.pick(logits.argsort(dim=-1, descending=True, stable=True)[:, : level.width])
            assert drafter.pick(logits, level) == (wanted if reduced is None else ids[wanted]).tolist()
            distinct = logits + torch.linspace(0.5, 0, vocab_size)
            assert drafter.pick(distinct, level) == drafter.pick(distinct.as_subclass(Elsewhere), level).tolist()
            assert len(drafter._tokens) == 2 and len(drafter._unread) == 1
    bench.close()


@pytest.mark.parametrize("tree", ["no such tree", [[0, 0]], [[0], [0]], [[-1]], [], 5, [["a"]]])
def test_wrong_trees_are_refused(tree: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Medusa(tree=tree)
    assert caught.value.key == "method.tree"


# ------------------------------------------------------------------------------------------------ decoding
@pytest.fixture(scope="module")
def heads_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the heads that the recorded rounds are made with: trained on the tiny target, once and for all."""
    folder = tmp_path_factory.mktemp("heads")
    for name in NODES:
        (folder / f"heads_{name}").symlink_to(Path(__file__).parent / "golden" / f"heads_{name}")
    return folder


def bench_of(name: str, pair: PairSpec, folder: Path, **options: Any) -> Bench:
    return Bench(with_tiny_heads({**NODES[name], **options}, pair, folder), pair, PROMPTS)


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("tree", ["auto", [[0]], [[0], [1], [0, 0], [0, 1], [1, 0], [0, 0, 0]]])
def test_any_tree_gives_the_targets_own_output(name: str, tree: Any, pair: PairSpec, heads_folder: Path) -> None:
    bench = bench_of(name, pair, heads_folder, tree=tree)
    try:
        for check in (greedy_identity, sampled_identity):
            assert check(bench).status == PASS, check(bench).detail
        rounds = bench.decode(GREEDY, bench.request(2)).rounds
        assert max(r.num_drafted for r in rounds) >= 1
    finally:
        bench.close()


@pytest.mark.parametrize("name", NODES)
def test_heads_that_draft_other_than_they_are_judged_by_are_found(
    name: str, pair: PairSpec, heads_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if `fill` took the hidden state, or the pending token, of another place than `ranks` does."""
    bench = bench_of(name, pair, heads_folder, tree=[[0], [1], [0, 0], [0, 2]])
    assert drafted_ranks(bench).status == PASS
    heads = bench.method(GREEDY).drafter.heads
    fill = heads.fill
    monkeypatch.setattr(heads, "fill", lambda hidden, *rest: fill(hidden.flip(1), *rest))
    result = drafted_ranks(bench)
    assert result.status == FAIL and "drafted are candidates" in result.detail
    bench.close()


@pytest.mark.parametrize("name", NODES)
def test_drafts_come_from_the_last_row_that_stands(name: str, pair: PairSpec, heads_folder: Path) -> None:
    """Every draft of a decoded text equals what the heads say, in one pass over the whole text, at the committed position."""
    bench = bench_of(name, pair, heads_folder, tree=[[0], [0, 0], [0, 0, 0]])
    drafter: Any = bench.method(GREEDY).drafter
    seen: list[tuple[int, list[int]]] = []
    original = drafter.propose

    def recording(max_depth: int) -> Any:
        tree = original(max_depth)
        seen.append((drafter.num_output, list(tree.tokens)))
        return tree

    drafter.propose = recording
    request = bench.request(2, eos_ids=())
    output = bench.decode(GREEDY, request).output_ids
    text = torch.tensor([[*request.prompt_ids, *output]])
    hidden = bench.target.module(input_ids=text, use_cache=False, output_hidden_states=True).hidden_states[-1][0]
    accepted = 0
    for num_output, tokens in seen:
        place = len(request.prompt_ids) + num_output - 2  # of the last token but the pending one
        if tokens:
            pending = int(text[0, place + 1])
            levels = drafter.plan.levels[: len(tokens)]
            assert drafter.filled(hidden[place : place + 1], pending, levels) == tokens
            accepted += output[num_output] == tokens[0] if num_output < len(output) else 0
    assert accepted > 0, "nothing was ever drafted right: the comparison says little"
    bench.close()


@pytest.mark.parametrize("rule", ["delta", "typical"])
def test_typical_acceptance_is_not_the_targets_law(rule: str, pair: PairSpec, heads_folder: Path) -> None:
    """The control: the same heads and nodes under `typical` fail the test of the law that they pass under `delta`."""
    bench = bench_of("medusa", pair, heads_folder, rule=rule, num_nodes=6, epsilon=0.05, delta=0.1)
    try:
        result, claims = sampled_law(bench, 120), [bench.method(law).claim(law) for law in (SAMPLED, GREEDY)]
    finally:
        bench.close()
    if rule == "delta":
        assert result.status == PASS and "lossy" not in claims
    else:
        assert result.status != PASS and "labelled lossy, and it is" in result.detail and set(claims) == {"lossy"}


def test_typical_thresholds_reach_the_rule() -> None:
    rule = Medusa(rule="typical", epsilon=0.2, delta=0.7).rule_for(SAMPLED)
    assert rule.function.keywords == {"epsilon": 0.2, "delta": 0.7}  # type: ignore[attr-defined]


def test_an_automatic_tree_follows_the_cost_of_rows(
    pair: PairSpec, heads_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flat rows give a large tree, rows as dear as forwards a small one; what was measured stands among the facts."""
    import specbench.parts.drafts.heads as module

    sizes: dict[str, int] = {}
    for name, slope in (("flat", 0.0), ("dear", 1.0)):
        monkeypatch.setattr(
            module, "measure_rounds", lambda _, drafts, slope=slope: [1.0 + slope * len(draft().tokens) for draft in drafts]
        )
        bench = bench_of("medusa", pair, heads_folder)
        facts = bench.method(GREEDY).facts()
        sizes[name] = facts["tree_nodes"]
        assert facts["plain_round_seconds"] == facts["round_seconds_of_1_nodes_in_1_levels"] - slope == 1.0
        if name == "dear":  # with another number of threads the rows cost less
            monkeypatch.setattr(module, "measure_rounds", lambda _, drafts: [1.0 for draft in drafts if draft() is not None])
            bench.method(GREEDY).settle()
            sizes["settled"] = bench.method(GREEDY).facts()["tree_nodes"]
        bench.close()
    assert sizes["flat"] == sizes["settled"] > 20 and sizes["dear"] <= 2


def test_a_target_that_takes_chains_only_gets_a_chain(pair: PairSpec, heads_folder: Path) -> None:
    bench = bench_of("hydra", pair, heads_folder)
    bench.target.tree_refusal = "it says so"
    try:
        plan: Any = bench.method(GREEDY).drafter.plan  # type: ignore[attr-defined]
        assert plan.tree([0] * len(plan.nodes), plan.depth, 1).is_chain
        assert greedy_identity(bench).status == PASS
    finally:
        bench.close()
    with pytest.raises(ConfigError, match="chains only"):
        refused = bench_of("hydra", pair, heads_folder, tree=[[0], [1]])
        refused.target.tree_refusal = "it says so"
        refused.method(GREEDY)


# ------------------------------------------------------------------------------------------------ published Medusa heads
def published(parts: TargetParts, num_heads: int, num_layers: int, own: bool = True) -> dict[str, torch.Tensor]:
    """Weights as the authors name them: <head>.<place>.linear.* for blocks, <head>.<last>.weight for the LM head."""
    generator = torch.Generator().manual_seed(9)
    state = {}
    for head in range(num_heads):
        for layer in range(num_layers):
            state[f"{head}.{layer}.linear.weight"] = torch.randn(parts.width, parts.width, generator=generator)
            state[f"{head}.{layer}.linear.bias"] = torch.randn(parts.width, generator=generator)
        if own:
            state[f"{head}.{num_layers}.weight"] = torch.randn(parts.vocab_size, parts.width, generator=generator)
    return state


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_published_heads_load(own: bool, suffix: str, parts: TargetParts, tmp_path: Path) -> None:
    state = published(parts, 3, 2, own)
    file = tmp_path / f"medusa_lm_head.{suffix}"
    torch.save(state, file) if suffix == "pt" else save_file(state, file)
    (tmp_path / "config.json").write_text(json.dumps({"medusa_num_heads": 3, "medusa_num_layers": 2}))
    heads = load_heads(MedusaHeads, tmp_path, parts)
    assert (heads.max_depth, heads.options["num_layers"], heads.options["own_lm_head"]) == (3, 2, own)
    x = torch.randn(parts.width)
    for depth in (1, 2, 3):
        y = x
        for layer in range(2):
            y = y + nn.functional.silu(
                state[f"{depth - 1}.{layer}.linear.weight"] @ y + state[f"{depth - 1}.{layer}.linear.bias"]
            )
        wanted = state[f"{depth - 1}.2.weight"] @ y if own else parts.lm_head(y)
        assert torch.allclose(heads.logits(x, depth), wanted, rtol=1e-4, atol=1e-3)


def test_published_heads_of_another_shape_and_code_in_a_pickle_are_refused(parts: TargetParts, tmp_path: Path) -> None:
    other = SimpleNamespace(width=parts.width + 1, vocab_size=parts.vocab_size)
    torch.save(published(other, 2, 1), tmp_path / "medusa_lm_head.pt")  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        load_heads(MedusaHeads, tmp_path, parts)
    assert caught.value.key == "method.heads"
    whole = (tmp_path / "medusa_lm_head.pt").read_bytes()
    for content in (b"", whole[:-60], whole[:200]):
        (tmp_path / "medusa_lm_head.pt").write_bytes(content)
        with pytest.raises(ConfigError, match=r"^method\.heads=.*: no Medusa heads that fit"):
            load_heads(MedusaHeads, tmp_path, parts)
    evil = tmp_path / "evil"
    evil.mkdir()
    torch.save({"0.0.linear.weight": subprocess.Popen}, evil / "medusa_lm_head.pt")
    with pytest.raises(ConfigError) as caught:
        load_heads(MedusaHeads, evil, parts)
    assert caught.value.key == "method.heads"


# ------------------------------------------------------------------------------------------------ training
def test_a_method_without_heads_cannot_train_any() -> None:
    for node in (None, {}, {"_target_": "specbench.methods.chains.autoregressive.Autoregressive"}):
        with pytest.raises(ConfigError) as caught:
            heads_class_of(node)
        assert caught.value.key == "method"


@pytest.mark.parametrize("cls", FAMILIES)
def test_training_makes_heads_right_more_often(cls: Any, pair: PairSpec, tmp_path: Path) -> None:
    for name, steps in (("new", 0), ("trained", 150)):
        make_tiny_heads(cls, pair, tmp_path / name, steps)
    new, trained = (
        json.loads((tmp_path / name / DESCRIPTION).read_text())["calibration"]["accuracies"] for name in ("new", "trained")
    )
    best = sorted(((i,) for i in range(3)), key=lambda node: -trained[0][node[0]])
    assert sum(node_probabilities(trained, best)) > sum(node_probabilities(new, best)) + 0.05


@pytest.mark.parametrize("name", NODES)
def test_the_command_trains_heads_that_decode(
    name: str,
    miniature: Miniature,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the command line to decoding that is identical to the target's own; the command runs in this process."""
    target = miniature.pair / "target"
    options = TINY | {"source": miniature.source, "source_licence": "MIT", "work": miniature.work, "out": tmp_path / "heads"}
    arguments = ["part=heads", f"method={name}", "heads={num_heads: 3}", f"pair.target={target}", "pair.draft=null"]
    arguments += ["train.tokens=4096", "parts.heads.length=64", "parts.heads.rows=4"]
    arguments += [f"train.{key}={value}" for key, value in options.items() if key not in ("rows", "length")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["specbench.train", *arguments])
    train_command()
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["options"]["num_heads"] == 3 and len(report["calibration"]["accuracies"]) == 3
    assert {file.name for file in (tmp_path / "heads").iterdir()} == {DESCRIPTION, WEIGHTS, "training.json", "README.md"}
    assert "| 3 |" in (tmp_path / "heads" / "README.md").read_text()
    spec = ModelSpec("target", "mine", str(target), "float32", "cpu", None, "sdpa", False)
    bench = Bench(
        {**NODES[name], "heads": str(tmp_path / "heads"), "num_nodes": 6}, PairSpec("mine", spec, None, 300), PROMPTS[:2]
    )
    try:
        for check in (greedy_identity, sampled_identity):
            assert check(bench).status == PASS, check(bench).detail
    finally:
        bench.close()

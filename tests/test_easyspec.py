"""EasySpec: the fuzzy forward against the paper's formula, its cache, its two times, and the method on a draft with groups."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import torch

from specbench.check import FAIL, GREEDY, SAMPLED, Bench
from specbench.check.identity import greedy_identity, sampled_identity
from specbench.check.state import caches
from specbench.config.compose import compose
from specbench.config.options import ConfigError
from specbench.config.schema import PairConfig
from specbench.config.specs import PairSpec
from specbench.engine.session import Session
from specbench.engine.side_by_side import SideBySide, groups_of
from specbench.measure.sensors import clock
from specbench.method import Feedback
from specbench.methods.chains import easyspec
from specbench.pair.load import check_pair, load_model, load_tokenizer
from specbench.pair.spec import specify

IDS = [5, 17, 300, 41, 8]


@pytest.fixture(scope="module")
def pair() -> PairSpec:
    """The built-in pair with its draft of four layers: two inner ones."""
    named = specify(PairConfig(name="builtin", target="builtin:target", draft="builtin:draft_large"))
    return check_pair(named, load_tokenizer(named.target))


@pytest.fixture(scope="module")
def target(pair: PairSpec) -> Any:
    return load_model(pair.target, pair.vocab_size)  # twelve layers to group


def sessions(model: Any, groups: list[list[int]]) -> tuple[Session, SideBySide]:
    whole = Session(model)
    whole.start(64)
    return whole, SideBySide(whole, groups)


def test_groups() -> None:
    assert groups_of(12, 4, 1) == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    assert groups_of(12, 1, 1) == [] and groups_of(2, 4, 1) == [] and groups_of(1, 4, 0) == []
    assert groups_of(2, 4, 0) == [[0, 1]] and groups_of(4, 4, 1) == [[1, 2]] and groups_of(6, 3, 1) == [[1, 2, 3]]


@torch.inference_mode()
def by_formula(model: Any, groups: list[list[int]], ids: list[int]) -> torch.Tensor:
    """Logits of a whole text: h[j + 1] = h[j] + a[j] + MLP(h[j] + a[j]), a[j] = attention of layer j on its norm of h[i]."""
    inner = model.module.model
    h = inner.embed_tokens(torch.tensor([ids]))
    positions = inner.rotary_emb(h, torch.arange(len(ids))[None])
    first = {layer: group[0] for group in groups for layer in group}
    entered: dict[int, torch.Tensor] = {}
    for j, layer in enumerate(inner.layers):
        entered[j] = h
        a = layer.self_attn(
            hidden_states=layer.input_layernorm(entered[first.get(j, j)]), position_embeddings=positions, attention_mask=None
        )[0]
        h = h + a
        h = h + layer.mlp(layer.post_attention_layernorm(h))
    logits: torch.Tensor = model.module.lm_head(inner.norm(h))[0]
    return logits


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_fuzzy_forward_is_the_papers(target: Any, size: int) -> None:
    groups = groups_of(12, size, 1)
    whole, fuzzy = sessions(target, groups)
    logits = fuzzy.feed(IDS)
    expected = by_formula(target, groups, IDS)[:, : target.vocab_size]
    assert torch.allclose(logits, expected, atol=1e-4), float((logits - expected).abs().max())
    whole.rollback(0)
    exact = whole.feed(IDS)
    difference = float((logits - exact).abs().max())
    assert difference == 0.0 if size == 1 else difference > 0.1
    assert type(target.module.model.layers[1].self_attn).__name__ == "LlamaAttention", "the model itself is untouched"


def test_rows_behind_a_cache_see_it(target: Any) -> None:
    """Token by token behind an exact prefix: as in one piece but for the prefix, and forgotten without a trace."""
    whole, fuzzy = sessions(target, [])
    whole.feed(IDS[:3])
    behind = fuzzy.feed(IDS[3:4])
    assert whole.length == fuzzy.length == 4
    assert torch.allclose(behind, by_formula(target, [], IDS[:4])[-1:, : target.vocab_size], atol=1e-4)
    whole, fuzzy = sessions(target, groups_of(12, 4, 1))
    exact = whole.feed(IDS)
    whole.rollback(3)
    fuzzy.feed(IDS[3:])
    whole.rollback(3)
    assert torch.allclose(whole.feed(IDS[3:]), exact[3:], atol=1e-5)


def test_other_layers_are_refused(target: Any) -> None:
    class Odd(torch.nn.Module):
        pass

    whole = Session(target)
    kept, target.module.model.layers[3] = target.module.model.layers[3], Odd()
    try:
        with pytest.raises(ValueError, match="input_layernorm"):
            SideBySide(whole, [[2, 3]])
    finally:
        target.module.model.layers[3] = kept


def test_the_two_times(target: Any) -> None:
    """By a clock that goes on by one whenever it is read: what passed, and what a group's slowest leaves of it."""
    _, fuzzy = sessions(target, [[1, 2, 3], [4, 5]])
    ticks = count()
    with clock.told_by(lambda: float(next(ticks))):
        fuzzy.feed([5])
        # 5 attentions of one second each, and 6 seconds between: of 3 and 2 at once, 3 less.
        assert fuzzy.seconds() == (11.0, 8.0)
        fuzzy.feed([6])
        assert fuzzy.seconds() == (22.0, 16.0)
        fuzzy.forget_times()
        assert fuzzy.seconds() == (0.0, 0.0)
    _, exact = sessions(target, [])
    with clock.told_by(lambda: float(next(ticks))):
        exact.feed([5])
        assert exact.seconds() == (1.0, 1.0)


# ------------------------------------------------------------------------------------------------ the method
@pytest.fixture(scope="module")
def bench(pair: PairSpec) -> Iterator[Bench]:
    tokenizer = load_tokenizer(pair.target)
    prompt = tuple(tokenizer("def add(a, b):\n    ").input_ids)
    made = Bench(compose(["method=easyspec"]).method, pair, [prompt])
    yield made
    made.close()


def test_identity_with_groups(bench: Bench) -> None:
    assert bench.method(GREEDY).facts()["layer_groups"] == "1-2"
    for check in (greedy_identity(bench), sampled_identity(bench, seeds=1)):
        assert check.status != FAIL, check.detail
    outcome = bench.decode(SAMPLED, bench.request(0))
    counted = outcome.counted
    assert counted["fuzzy_forwards"] == sum(r.num_draft_forwards - 1 for r in outcome.rounds if r.num_draft_forwards) > 0
    assert 0 < counted["simulated_fuzzy_draft_seconds"] < counted["fuzzy_draft_seconds"]
    assert counted["fuzzy_draft_seconds"] <= sum(r.draft_seconds for r in outcome.rounds)


@pytest.mark.slow
def test_caches_with_groups(bench: Bench) -> None:
    assert caches(bench).status != FAIL


def test_drafts_change_with_the_groups(pair: PairSpec, bench: Bench) -> None:
    """Acceptance is that of fuzzy layers: the exact draft's is another, and `speculative`'s."""
    shown = {}
    for name, options in (("exact", {"layer_parallel": 1}), ("fuzzy", {"exact_ends": 0}), ("sd", None)):
        node = {**bench.node, **options} if options is not None else compose(["method=speculative"]).method
        made = Bench(node, pair, bench.prompts)
        try:
            rounds = made.decode(GREEDY, made.request(0)).rounds
        finally:
            made.close()
        shown[name] = [(r.num_drafted, r.num_accepted) for r in rounds]
    assert shown["exact"] == shown["sd"] != shown["fuzzy"]


def test_a_draft_that_is_not_calibrated_is_caught(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the check of caches: fuzzy keys and values that stay."""

    def observe(self: Any, feedback: Feedback) -> None:
        super(easyspec.FuzzyDraft, self).observe(feedback)

    monkeypatch.setattr(easyspec.FuzzyDraft, "observe", observe)
    assert caches(bench).status == FAIL


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"layer_parallel": 0}, "method.layer_parallel"),
        ({"exact_ends": -1}, "method.exact_ends"),
        ({"draft_length": 0}, "method.draft_length"),
        ({"rule": "typical"}, "method.rule"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        easyspec.EasySpec(**options)
    assert caught.value.key == key

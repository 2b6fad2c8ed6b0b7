"""Serving on the virtual clock, and what a mixture's routers touch: laws, the sign that flips with load, and a twin each."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
import torch
from test_sim import PAIR

from specbench.config.options import ConfigError
from specbench.sim.acceptance import Profile
from specbench.sim.costs import Costs
from specbench.sim.hardware import load_costs
from specbench.sim.routing import RouterTrace, distinct_experts, of_tiny_mixture, report, tiny_mixture, uniform_experts
from specbench.sim.serving import POLICY, Served, over_traces, poisson, recorded_arrivals, serve, step_seconds

LENGTHS = (0, 1, 2, 4)


def served(costs: Costs, rate: float, number: int, acceptance: float, max_batch: int = 512) -> dict[str, Served]:
    texts = [Profile((acceptance,)).text(f"s/{i}", 0, 128, 64, 0) for i in range(number)]
    return {s.policy: s for s in over_traces(costs, texts, {rate: poisson(rate, number, 0)}, LENGTHS, max_batch)[rate]}


def test_the_sign_flips_with_load_and_the_policy_follows() -> None:
    """Few requests: drafting wins. Many: it costs more than it gives, as published. The policy is close to the best of both."""
    costs = load_costs("h100", PAIR)
    for rate, number, wins in ((2.0, 12, "k = 4"), (1e5, 500, "k = 0")):
        found = served(costs, rate, number, 0.6)
        latency = {policy: s.mean_latency_seconds for policy, s in found.items()}
        fixed = {policy: seconds for policy, seconds in latency.items() if policy != POLICY}
        assert (latency["k = 4"] < latency["k = 0"]) == (wins == "k = 4")
        assert latency[POLICY] <= 1.05 * min(fixed.values())
    light, heavy = (served(costs, rate, number, 0.6)[POLICY] for rate, number in ((2.0, 12), (1e5, 500)))
    assert light.mean_length > 2 > 1 > heavy.mean_length


def test_a_request_alone_takes_its_prompt_and_its_steps() -> None:
    costs = load_costs("h100", PAIR)
    text = Profile((0.0,)).text("s", 0, 100, 30, 0)
    one = serve(costs, [text], [3.0], length=0, longest=4, max_batch=8)
    steps = sum(step_seconds(costs, 0, 100 + position, 1) for position in range(1, 30))
    assert one.latencies[0] == pytest.approx(costs.prefill["target"].seconds(100, 0) + steps)
    assert one.num_tokens == 29 and one.lengths == {0: 29}


def test_every_token_is_served_once_and_the_batch_has_its_limit() -> None:
    for policy in served(load_costs("2xh100", PAIR), 500.0, 40, 0.7, max_batch=7).values():
        assert policy.num_tokens == 40 * 63 and len(policy.latencies) == 40
        assert max(policy.batches) == 7 and min(policy.latencies) > 0


def test_replicas_share_a_stream_and_two_choices_shorten_its_queues() -> None:
    costs, number, replicas = load_costs("h100", PAIR), 240, 6
    texts = [Profile((0.7,)).text(f"s/{i}", 0, 128, 64, 0) for i in range(number)]
    arrivals = poisson(2400.0, number, 0)
    options: dict[str, int] = {"longest": 4, "max_batch": 4}
    found = serve(costs, texts, arrivals, length=None, replicas=replicas, **options)
    assert found.num_tokens == number * 63 and len(found.latencies) == number and max(found.batches) == 4
    alone = [serve(costs, texts[n::replicas], arrivals[n::replicas], length=None, **options) for n in range(replicas)]
    assert found.tokens_per_second == pytest.approx(sum(one.tokens_per_second for one in alone), rel=0.15)
    # The twin: all to one queue is what a fleet that is not used would be.
    assert found.mean_latency_seconds < 0.4 * serve(costs, texts, arrivals, length=None, **options).mean_latency_seconds


@pytest.mark.slow
def test_a_thousand_replicas_take_minutes_and_not_hours() -> None:
    """Twice the replicas take about twice the time: nothing is quadratic. In processor time: others may compute beside."""
    costs, spent = load_costs("h100", PAIR), []
    for replicas in (250, 1000):
        number = 16 * replicas
        texts = [Profile((0.7,)).text(f"s/{i}", 0, 128, 128, 0) for i in range(200)] * (number // 200)
        start = time.process_time()
        found = serve(
            *(costs, texts, poisson(8.0 * replicas, number, 0)), length=None, longest=6, max_batch=64, replicas=replicas
        )
        spent.append(time.process_time() - start)
        assert found.num_tokens == number * 127
    assert spent[1] < 8 * spent[0] and spent[1] < 180


def test_a_policy_that_starts_with_a_rejection_finds_back() -> None:
    """A first wrong draft is no proof that all are wrong."""
    texts = [Profile((1.0,)).text("s", 0, 64, 120, 0, known={1: False, 2: False})]
    found = serve(load_costs("h100", PAIR), texts, [0.0], length=None, longest=4, max_batch=1)
    assert found.mean_length > 2.5


def test_arrivals(tmp_path: Path) -> None:
    times = poisson(4.0, 2000, 1)
    assert times == sorted(times) and times[-1] / 2000 == pytest.approx(0.25, rel=0.1)
    (tmp_path / "trace").write_text("0.5\n1\n1\n2.5\n")
    assert recorded_arrivals(tmp_path / "trace") == [0.5, 1.0, 1.0, 2.5]
    for text in ("2\n1\n", "soon\n", ""):
        (tmp_path / "trace").write_text(text)
        with pytest.raises(ConfigError, match="arrivals="):
            recorded_arrivals(tmp_path / "trace")


# ------------------------------------------------------------------------------------------------ routing
def test_distinct_experts_are_counted() -> None:
    chosen = torch.tensor([[0, 1], [1, 2], [1, 0], [3, 1]])
    for rows in (1, 2, 3, 4):
        windows = [set(itertools.chain(*chosen[i : i + rows].tolist())) for i in range(5 - rows)]
        assert distinct_experts(chosen, rows) == pytest.approx(sum(map(len, windows)) / len(windows))


def test_uniform_routing_meets_its_formula_and_lopsided_routing_does_not() -> None:
    draw = torch.Generator().manual_seed(0)
    uniform = torch.stack([torch.randperm(8, generator=draw)[:2] for _ in range(4000)])
    for rows in (1, 2, 5):
        assert distinct_experts(uniform, rows) == pytest.approx(uniform_experts(8, 2, rows), rel=0.02)
    assert distinct_experts(uniform.repeat_interleave(4, 0), 5) < 0.8 * uniform_experts(8, 2, 5)
    assert report([uniform], 8, 2, (1,), 0.0, 1.0)[0].weight_bytes_ratio == 1.0


@pytest.mark.slow
def test_routers_are_recorded_as_the_model_decides() -> None:
    found = of_tiny_mixture(8, 2, (1, 5), 40, 0)
    assert found[0].experts == 2.0 and 2.0 < found[1].experts <= 8.0
    assert 1.0 < found[1].weight_bytes_ratio < found[1].experts / 2
    model = tiny_mixture(4, 1)
    with RouterTrace(model, 1) as trace:
        model(torch.arange(6)[None])
    model(torch.arange(6)[None])  # after the trace nothing is recorded
    assert [layer.shape for layer in trace.layers()] == [(6, 1)] * 4
    gate, hidden = model.model.layers[0].mlp.gate, []
    handle = gate.register_forward_hook(lambda _, inputs, __: hidden.append(inputs[0]))
    model(torch.arange(6)[None])
    handle.remove()
    scores = hidden[0].reshape(6, -1) @ gate.weight.T
    assert trace.layers()[0][:, 0].tolist() == scores.argmax(1).tolist()
    with pytest.raises(ValueError, match="has no router"):
        RouterTrace(torch.nn.Linear(2, 2), 1)

"""The virtual clock: laws with closed forms, bounds that nothing beats, the played theory, folders that say what they are."""

from __future__ import annotations

import functools
import json
import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import composed, finished_run

from specbench.analysis.derive.conditions import groups
from specbench.analysis.read.frames import load
from specbench.config.options import ConfigError
from specbench.config.paths import CONF_DIR
from specbench.config.specs import ModelSpec, PairSpec
from specbench.engine.request import Outcome
from specbench.measure.records import store
from specbench.measure.records.events import Round
from specbench.measure.theory.formulas import emitted_sequential
from specbench.measure.theory.played import Times, free_running, lockstep, lockstep_seconds
from specbench.pair.spec import specify
from specbench.processes.mailbox import PeerLost
from specbench.run import resume
from specbench.sim import folders
from specbench.sim.acceptance import (
    MAX_RANK,
    Profile,
    Text,
    in_chain,
    judged,
    measured_profile,
    pattern_text,
    rate_of,
    recorded_texts,
)
from specbench.sim.around import seconds_around
from specbench.sim.compare import Cell, crossing, largest_that_pays, texts_of
from specbench.sim.costs import ALONE, TURNS, CostError, Costs, Grid, Link, Neighbours, Roofline, Size
from specbench.sim.hardware import load_costs, preset_costs, preset_names
from specbench.sim.options import parse
from specbench.sim.play import Played, play
from specbench.sim.session import EOS, Script, SimModel
from specbench.sim.validate import as_settled
from specbench.sim.world import SimSlot, World, news_at
from specbench.track.mirror import tracked_run

PAIR = PairSpec(
    "llama3.1_8b_1b",
    ModelSpec("target", "meta-llama/Llama-3.1-8B-Instruct", "-", "bfloat16", "cpu", None, "sdpa", False),
    ModelSpec("draft", "meta-llama/Llama-3.2-1B-Instruct", "-", "bfloat16", "cpu", None, "sdpa", False),
)


@functools.cache
def node(method: str, *options: str) -> Any:
    return composed(f"method={method}", *(f"method.{option}" for option in options)).method


def flat(target: float, draft: float, row: float = 0.0, link: Link | None = None, **stages: float) -> Costs:
    """Forwards that cost the same whatever the context, and a prefill that costs nothing to speak of."""
    models = {"target": (target, row), "draft": (draft, 0.0)} | {name: (cost, 0.0) for name, cost in stages.items()}
    grids = {
        role: Grid(
            [[rows, 0, 1, first + more * (rows - 1)] for rows in (1, 64)]
            + [[r, 9999, 1, 0.0 + first + more * (r - 1)] for r in (1, 64)]
        )
        for role, (first, more) in models.items()
    }
    curves = {(role, mode): grids[role] for role in models for mode in (ALONE, TURNS)}
    prefill = dict.fromkeys(models, Grid([[1, 0, 1, 1e-9], [999, 0, 1, 1e-9]]))
    beside = {role: Neighbours((grid,) * 3) for role, grid in grids.items()}
    return Costs("flat", "measured", curves, prefill, link or Link(), 2, {}, beside)


def texts(rate: float, number: int = 4, tokens: int = 200, seed: int = 0) -> list[Text]:
    return [Profile((rate,)).text(f"s/{i}", 0, 10, tokens, seed) for i in range(number)]


def of(method: str, costs: Costs, some: list[Text], *options: str) -> Played:
    return play(node(method, *options), costs, some)


# ------------------------------------------------------------------------------------------------ laws
def test_plain_decoding_takes_a_forward_per_token() -> None:
    played = of("autoregressive", flat(0.004, 0.001), texts(0.5, number=3))
    assert played.decode_seconds == pytest.approx(3 * 199 * 0.004, rel=1e-9)
    assert played.busy_seconds["target"] == pytest.approx(played.decode_seconds, rel=1e-6)


def test_what_a_schedule_does_around_a_forward_is_charged_with_it() -> None:
    """Of the schedule it was measured with, and of no other; as `seconds_around` finds it in what was played."""
    keys = {"sequential, draft none": {"target": 0.001}, "lockstep, draft worker": {"target": 0.0004, "draft": 0.0002}}
    bare, dear = flat(0.004, 0.001), replace(flat(0.004, 0.001), around=keys)
    some = texts(0.5, number=2)
    assert of("autoregressive", dear, some).decode_seconds == pytest.approx(2 * 199 * 0.005, rel=1e-9)
    assert of("amusd", dear, some).decode_seconds == of("amusd", bare, some).decode_seconds
    assert folders.costs_sha256(dear) != folders.costs_sha256(bare)
    played = of("pearl", dear, some, "draft_length=2")
    blocks = sum(len(outcome.rounds) for outcome in played.outcomes)
    assert played.decode_seconds == pytest.approx(blocks * 0.0044, rel=1e-3)


def test_what_is_around_a_forward_is_neither_computed_nor_waited() -> None:
    times = {"draft_seconds": 0.5, "verify_seconds": 2.0, "wait_seconds": 0.25}
    rounds = [Round(3.0 * n, 3.0 * n + 3, 0, 0, 1, **times) for n in range(2)]
    spans = [(0.0, 1.0, "idle"), (1.25, 2.25, "draft"), (2.5, 3.5, "discarded_draft"), (3.5, 4.0, "idle")]
    outcome = Outcome([1, 2, 3], "length", 1.0, 6.0, rounds, spans=spans)
    assert seconds_around([outcome]) == {"target": pytest.approx(0.25), "draft": pytest.approx(0.25)}
    assert seconds_around([replace(outcome, spans=[])]) == {"target": pytest.approx(0.25)}


@pytest.mark.parametrize(("rate", "length"), [(0.5, 1), (0.8, 4), (0.9, 8)])
def test_speculative_rounds_emit_what_leviathan_says(rate: float, length: int) -> None:
    """Within four standard errors of the formula, by a seed; and a round costs its drafts and one forward, exactly."""
    some = texts(rate, number=6, tokens=400)
    played = of("speculative", flat(0.004, 0.001, 0.0001), some, f"draft_length={length}")
    rounds = [r for outcome in played.outcomes for r in outcome.rounds if r.num_drafted == length]
    emitted = [r.num_emitted for r in rounds if r.num_emitted]
    mean = sum(emitted) / len(emitted)
    deviation = math.sqrt(sum((e - mean) ** 2 for e in emitted) / len(emitted) / len(emitted))
    assert mean == pytest.approx(emitted_sequential(rate, length), abs=4 * deviation)
    for r in rounds:
        assert r.t_end - r.t_start == pytest.approx(0.001 * length + 0.004 + 0.0001 * length, rel=1e-6)


@pytest.mark.parametrize("pattern", ["never", "always", "iid:0.3", "bursts:12+4"])
def test_free_running_takes_the_time_of_the_played_theory(pattern: str) -> None:
    """The real AMUSD on the engine against the schedule played by hand: round for round, and to the microsecond."""
    from specbench.config.draft_errors import DraftErrors

    limit, times = 60, Times(0.001, 0.00437, 0.00005681)
    errors = DraftErrors.parse(pattern)
    played = of("amusd", flat(times.verify, times.draft, times.row, Link(1e-9)), [pattern_text(errors, "s/0", 0, 3, limit, 0)])
    steps, seconds = free_running(errors.wrong_positions("s/0", 0, limit), limit, limit, times, 2)
    rounds = [(r.num_drafted, r.num_accepted, r.num_emitted) for r in played.outcomes[0].rounds]
    assert rounds == [(s.drafted, s.accepted, s.emitted) for s in steps]
    assert played.decode_seconds == pytest.approx(seconds, rel=1e-4)
    other = of("amusd", flat(0.002, times.draft, 0.0, Link(1e-9)), played.texts)  # the comparison can fail
    assert other.decode_seconds != pytest.approx(seconds, rel=1e-2)


@pytest.mark.parametrize("pattern", ["never", "iid:0.3", "every:4"])
def test_lockstep_takes_the_slower_side_of_every_step(pattern: str) -> None:
    from specbench.config.draft_errors import DraftErrors

    limit, times = 61, Times(0.001, 0.0035)
    errors = DraftErrors.parse(pattern)
    played = of("pearl", flat(times.verify, times.draft, 0.0), [pattern_text(errors, "s/0", 0, 3, limit, 0)], "draft_length=4")
    steps = lockstep(errors.wrong_positions("s/0", 0, limit), limit, limit, 4)
    assert [r.num_emitted for r in played.outcomes[0].rounds] == [s.emitted for s in steps]
    assert played.decode_seconds == pytest.approx(lockstep_seconds(steps, times), rel=1e-6)


# ------------------------------------------------------------------------------------------------ chains of drafts
@pytest.mark.parametrize("pattern", ["never", "iid:0.3", "bursts:12+4"])
def test_a_chain_of_one_draft_is_amusd(pattern: str) -> None:
    """Round for round and second for second; a further stage makes it another schedule."""
    from specbench.config.draft_errors import DraftErrors

    some = [pattern_text(DraftErrors.parse(pattern), f"s/{i}", 0, 3, 60, 0) for i in range(2)]
    costs = flat(0.00437, 0.001, 0.00005681, Link(2e-5), middle=0.002)
    options = ("draft_length=2", "max_lookahead=9")
    one, other = of("pipespec", costs, some, "stages=[draft]", *options), of("amusd", costs, some, *options)
    for mine, theirs in zip(one.outcomes, other.outcomes, strict=True):
        assert (mine.rounds, mine.decode_seconds) == (theirs.rounds, theirs.decode_seconds)
    longer = of("pipespec", costs, in_chain(some, rate_of(some), (1.0,), 0), *options)
    assert [o.rounds for o in longer.outcomes] != [o.rounds for o in other.outcomes]


def played_by_hand(wrong: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, list[Any]], Outcome]:
    """A chain of three, 10, 4 and 1.1 ms a forward, ten tokens: (start in ms, rows) of the forwards behind the prefill."""
    found: dict[str, list[Any]] = {}

    def charge(model: SimModel, rows: int, past: int) -> None:
        world = model.stage.charge.__self__  # type: ignore[attr-defined]
        if past:
            found.setdefault(world.current.name, []).append((round(1e3 * world.now(), 3), rows))
        charged(model, rows, past)

    charged = SimModel.charge
    monkeypatch.setattr(SimModel, "charge", charge)
    right = tuple(position not in wrong for position in range(10))
    text = Text("s/0", 0, 3, 10, 10, False, right, tuple(1 if r else 2 for r in right), ((True,) * 10,))
    costs = flat(0.010, 0.0011, link=Link(1e-9), middle=0.004)
    return found, of("pipespec", costs, [text], "draft_length=1").outcomes[0]


def test_a_chain_of_three_plays_as_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    found, outcome = played_by_hand((), monkeypatch)
    assert found["stage 0"] == [(pytest.approx(1.1 * n, abs=2e-3), 1) for n in range(8)]  # never stopped, to the last but one
    # The middle has one draft, then what came meanwhile: two, and two more, as far as the output goes.
    assert found["stage 1"] == [(pytest.approx(at, abs=2e-3), rows) for at, rows in ((1.1, 2), (5.1, 3), (9.1, 3))]
    assert found["target"] == [(pytest.approx(at, abs=2e-3), rows) for at, rows in ((5.1, 3), (15.1, 6))]
    assert outcome.decode_seconds == pytest.approx(0.0251, abs=2e-6)


def test_a_contradiction_in_a_chain_plays_as_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draft errs at position 3: the middle sees it behind its second forward, and the target never hears of it."""
    found, outcome = played_by_hand((3,), monkeypatch)
    starts = [*(1.1 * n for n in range(8)), *(9.1 + 1.1 * n for n in range(5))]
    assert found["stage 0"] == [(pytest.approx(at, abs=2e-3), 1) for at in starts]  # the cache goes back with it
    assert found["stage 1"] == [(pytest.approx(at, abs=2e-3), rows) for at, rows in ((1.1, 2), (5.1, 3), (10.2, 2), (14.2, 3))]
    assert found["target"] == [(pytest.approx(at, abs=2e-3), rows) for at, rows in ((5.1, 3), (15.1, 3), (25.1, 3))]
    assert outcome.decode_seconds == pytest.approx(0.0351, abs=2e-6)
    assert outcome.counted["stage_0_discarded"] == 6 and outcome.counted["stage_1_discarded"] == 0


def test_the_models_of_a_chain_are_nested_and_have_their_rates() -> None:
    some = in_chain(texts(0.6, number=20), 0.6, (0.8, 0.95), seed=1)
    for text in some:
        for fewer, more in zip((text.right, *text.behind), text.behind, strict=False):
            assert all(b or not a for a, b in zip(fewer, more, strict=True))
    for number, rate in enumerate((0.8, 0.95)):
        share = sum(sum(t.behind[number][1:]) for t in some) / (20 * 199)
        assert share == pytest.approx(rate, abs=0.03)
    wrong = [place for place, right in enumerate(some[0].behind[0]) if not right]
    said = [script.argmax(1)[wrong] for script in (Script(some[0]).target, *Script(some[0]).drafts[:2])]
    assert (said[0] != said[1]).all() and (said[0] != said[2]).all() and (said[1] != said[2]).all()
    with pytest.raises(ConfigError, match=r"stage_acceptance=0\.5: a model of a chain is right wherever"):
        in_chain(some, 0.6, (0.5,), 0)


def test_a_chain_shares_what_a_preset_has() -> None:
    """A device each on a cluster; on two devices the stages share the draft's, on one all share."""
    stages = ("draft", "middle")
    alone = load_costs("cluster", PAIR, stages=stages)
    assert alone.num_devices == 3 and load_costs("cluster", PAIR).num_devices == 2
    for name, share in (("cluster", 1), ("2xh100", 2), ("h100", 3)):
        costs = load_costs(name, PAIR, stages=stages)
        for stage in stages:
            whole = alone.curve(stage, ALONE).seconds(1, 0)
            assert costs.company(stage).seconds(1, 0, (3, 1)) == pytest.approx(share * whole, rel=1e-6)
            assert costs.company(stage).seconds(1, 0, (0, 0)) == pytest.approx(whole, rel=1e-6)
        beside = costs.company("target").seconds(1, 0, (1, 0)) / costs.curve("target", ALONE).seconds(1, 0)
        assert beside == pytest.approx(2 if name == "h100" else 1)
    weights = [alone.curve(role, ALONE).size.parameters for role in ("target", "middle")]  # type: ignore[attr-defined]
    assert weights[1] == pytest.approx(0.53e9 + (weights[0] - 0.53e9) / 2)
    with pytest.raises(ConfigError, match=r"target:<1 to 32>"):
        load_costs("cluster", PAIR, stages=("draft", "target:33"))
    with pytest.raises(CostError, match="no costs of the middle beside"):
        flat(1.0, 1.0).company("middle")


def test_a_forward_costs_what_its_company_does_at_the_time() -> None:
    """Lockstep, all right, blocks of two: forwards of 9 and 1 ms take twice as long while both are at work; by hand."""

    def costs(alone: float, beside: float) -> Neighbours:
        return Neighbours(tuple(Grid([[r, c, 1, s] for r in (1, 64) for c in (0, 9999)]) for s in (alone, beside, beside)))

    both = {"target": costs(0.009, 0.018), "draft": costs(0.001, 0.002)}
    played = of("pearl", replace(flat(1.0, 1.0), beside=both), texts(1.0, number=1, tokens=61), "draft_length=2")
    # Two drafts beside it take 4 ms, in which 4/18 of a verification are done; 14/18 of 9 ms are left, beside one that waits.
    assert played.decode_seconds == pytest.approx(len(played.outcomes[0].rounds) * 0.011, rel=0.03)
    assert played.outcomes[0].rounds[5].t_end - played.outcomes[0].rounds[5].t_start == pytest.approx(0.011, rel=1e-6)
    assert played.busy_seconds["draft"] / len(played.outcomes[0].rounds) == pytest.approx(0.004, rel=0.05)


def test_a_chains_run_is_no_acceptance(tmp_path: Path) -> None:
    config = composed("method=pipespec", f"runs_dir={tmp_path}")
    folder = simulated_run(config, flat(0.009, 0.001, middle=0.003), in_chain(texts(0.7, number=2, tokens=20), 0.7, (0.9,), 0))
    with pytest.raises(ConfigError, match="records no verdicts of its stages by position"):
        texts_of(parse([])[0], str(folder))


def test_pearl_measures_the_simulated_machine_and_not_this_one() -> None:
    played = of("pearl", flat(0.0071, 0.001), texts(0.9, number=1))
    facts = played.method.facts()
    assert facts["draft_length"] == 7 and facts["target_seconds"] == pytest.approx(0.0071, rel=1e-6)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["amusd", "pearl"]), st.floats(0.2, 1.0), st.floats(1.0, 9.0), st.floats(0.0, 2.0))
def test_no_schedule_is_faster_than_its_draft_or_its_target(method: str, rate: float, ratio: float, latency: float) -> None:
    """Tokens come no faster than they are drafted, and no more than a block with every forward of the target."""
    some = texts(rate, number=1, tokens=80)
    costs = flat(1e-3 * ratio, 1e-3, link=Link(1e-3 * latency))
    played = of(method, costs, some, "draft_length=3")
    rounds = sum(len(outcome.rounds) for outcome in played.outcomes)
    assert played.decode_seconds >= rounds * 1e-3 * ratio - 1e-9
    drafted = sum(r.num_accepted for outcome in played.outcomes for r in outcome.rounds)
    ahead = 20  # drafted while the prefill's token was under way: nothing, but for look-ahead kept at the end
    assert played.decode_seconds >= (drafted - ahead) * 1e-3 - 1e-9
    assert played.busy_seconds["draft"] <= played.decode_seconds + 1e-3 * (1 + latency)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["speculative", "pearl"]), st.floats(1.0, 3.0), st.floats(1.0, 3.0))
def test_dearer_forwards_never_make_it_faster(method: str, target: float, draft: float) -> None:
    """Of schedules whose rounds no clock moves (of a free-running one the rounds themselves are the clock's)."""
    some = texts(0.7, number=1, tokens=60)
    cheap, dear = (of(method, flat(1e-3 * t, 2.5e-4 * d), some, "draft_length=3") for t, d in ((1, 1), (target, draft)))
    assert dear.decode_seconds >= cheap.decode_seconds - 1e-12


def test_ssd_runs_on_the_clock_and_keeps_its_bounds() -> None:
    """Right drafts make it faster than plain decoding, wrong ones only its second process idle; never past draft or target."""
    costs = flat(0.004, 0.0005, link=Link(1e-5))
    right, wrong = (of("ssd", costs, texts(rate, number=1, tokens=80), "draft_length=3") for rate in (1.0, 0.0))
    plain = 79 * 0.004
    assert 79 / 5 * 0.004 <= right.decode_seconds < 0.6 * plain
    assert wrong.decode_seconds >= plain - 1e-9
    assert right.busy_seconds["draft"] > 0


def test_the_same_seed_gives_the_same_events() -> None:
    first, second = (of("amusd", flat(0.004, 0.001, link=Link(2e-5)), texts(0.8, seed=3)) for _ in range(2))
    assert [o.rounds for o in first.outcomes] == [o.rounds for o in second.outcomes]
    assert texts(0.8, seed=3) != texts(0.8, seed=4)


def test_processes_that_wait_for_each_other_are_told() -> None:
    world = World()
    box = world.mailbox(4)
    with pytest.raises(PeerLost, match="wait for ever"):
        box.drafts.wait(0, 1.0)


def test_messages_take_the_links_time_and_keep_their_order() -> None:
    world = World(Link(0.5, 8.0))  # a cell a second
    slot = SimSlot(world, 8)
    slot.publish(1, 0, 0, [5, 6])
    slot.publish(1, 0, 2, [])
    assert slot.read(0).tokens == [] and news_at(slot, 0) == pytest.approx(0.5 + 10)
    world.time = 11.0
    assert slot.read(0).tokens == [5, 6] and slot.version() == 2


# ------------------------------------------------------------------------------------------------ costs
POINTS = [[r, c, b, 1e-3 * (1 + 0.1 * r * b + 0.001 * c)] for r in (1, 2, 8) for c in (0, 100, 400) for b in (1, 4, 16)]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_more_work_never_costs_less(data: st.DataObject) -> None:
    noisy = [[r, c, b, s * data.draw(st.floats(0.5, 2.0))] for r, c, b, s in POINTS]
    curves = [Grid(noisy), Roofline(Size(1e9, 1e5), 1e12, 1e13)]
    small = [data.draw(st.integers(*bounds)) for bounds in ((1, 8), (0, 400), (1, 16))]
    large = [data.draw(st.integers(low, top)) for low, top in zip(small, (8, 400, 16), strict=True)]
    for curve in curves:
        assert curve.seconds(*small) <= curve.seconds(*large) * (1 + 1e-12)


def test_a_grid_goes_through_its_points_and_no_further() -> None:
    grid = Grid(POINTS, "target turns")
    for rows, context, batch, seconds in POINTS:
        assert grid.seconds(rows, context, batch) == pytest.approx(seconds)
    assert grid.seconds(12, 600, 24) > grid.seconds(8, 400, 16)
    for key, place in (("rows", (13, 0, 1)), ("context", (1, 601, 1)), ("batch", (1, 0, 25))):
        with pytest.raises(CostError, match=rf"target turns: {key}=\d+ is far from what was measured .*: measure there"):
            grid.seconds(*place)
    with pytest.raises(CostError, match="rows=1 is far"):
        Grid([[2, 0, 1, 1.0]]).seconds(1, 0)
    with pytest.raises(CostError, match="every combination"):
        Grid(POINTS[:-1])
    with pytest.raises(CostError, match="is no point"):
        Grid([[1, 0, 1, 0.0]])


def test_noise_is_evened_out_and_not_carried_upwards() -> None:
    """A reading too dear moves what is beside it by its share; were each the dearest so far it would raise what is behind."""
    by_rows = [[rows, 0, 1, seconds] for rows, seconds in ((1, 1.0), (2, 3.0), (3, 2.0), (4, 4.0))]
    assert [Grid(by_rows).seconds(rows, 0) for rows in (1, 2, 3, 4)] == pytest.approx([1.0, 2.5, 2.5, 4.0])


def test_every_number_of_rows_is_measured_because_kernels_have_steps() -> None:
    """What AMUSD's error was: 13 rows take the weights another way, and a line from 12 to 17 is 11 % below 14."""

    def kernel(rows: int) -> float:
        return 3.5 * rows + (10.0 if rows > 12 else 0.0)

    rows = parse([])[0].rows
    assert list(rows) == list(range(1, max(rows) + 1))
    every, some = (Grid([[r, 0, 1, kernel(r)] for r in measured]) for measured in (rows, (*range(1, 10), 12, 17)))
    assert all(every.seconds(r, 0) == pytest.approx(kernel(r)) for r in rows)
    assert some.seconds(14, 0) == pytest.approx(0.90 * kernel(14), rel=0.01)


def test_a_runs_own_baseline_and_that_of_all_runs() -> None:
    """tests/bench/simulated.py: two runs that the clock has right but for baselines that scatter by a tenth either way."""
    bench = runpy.run_path(str(Path(__file__).parent / "bench" / "simulated.py"))
    found = [
        {"data": data, "method": method, "seconds": 10.0, "simulated_seconds": 10.0, "rounds": 5, "simulated_rounds": 5}
        | {"baseline_seconds": by * scale, "simulated_baseline_seconds": 5.0 * scale}
        for data, scale in (("a", 1.0), ("b", 2.0))
        for method, by in (("amusd", 4.5), ("pearl", 5.5))
    ]
    shared = bench["with_all_baselines"](found)
    for method, own in (("amusd", 100 * (5 / 4.5 - 1)), ("pearl", 100 * (5 / 5.5 - 1))):
        one = bench["compared"](*([run for run in some if run["method"] == method] for some in (found, shared)))
        assert one["error_percent"] == pytest.approx(own) and one["baseline_seconds_percent"] == pytest.approx(own)
        assert (
            one["all_baselines_error_percent"] == pytest.approx(0.0) and one["seconds_percent"] == one["rounds_percent"] == 0.0
        )


def test_a_roofline_is_memory_for_few_rows_and_arithmetic_for_many() -> None:
    curve = Roofline(Size(8e9, 0.0), 2e12, 1e15)
    assert curve.seconds(1, 0) == curve.seconds(100, 0) == pytest.approx(8e9 * 2 / 2e12)
    assert curve.seconds(4000, 0) == pytest.approx(2 * 8e9 * 4000 / 1e15)


def test_every_preset_can_be_used_and_a_broken_one_is_named() -> None:
    import yaml

    for name in preset_names():
        costs = load_costs(name, PAIR)
        assert costs.curve("target", ALONE).seconds(1, 100) > costs.curve("draft", ALONE).seconds(1, 100)
        assert costs.company("target").seconds(1, 100, (1,)) >= costs.curve("target", TURNS).seconds(1, 100)
    facts = yaml.safe_load((CONF_DIR / "sim" / "devices" / "h100.yaml").read_text())
    with pytest.raises(ConfigError, match=r"mine\.link=null: must be given"):
        preset_costs("mine", {k: v for k, v in facts.items() if k != "link"}, PAIR)
    with pytest.raises(ConfigError, match=r"mine\.target\.bytes_per_second"):
        preset_costs("mine", facts | {"target": facts["target"] | {"bytes_per_second": "fast"}}, PAIR)
    with pytest.raises(ConfigError, match="possible: 2xh100, cluster"):
        load_costs("h1000", PAIR)


# ------------------------------------------------------------------------------------------------ acceptance
def test_recorded_rounds_say_which_drafts_were_right() -> None:
    """Three stood; then none and the first fell; then a whole draft of two, whose bonus nobody judged."""
    columns = {"num_drafted": [4, 2, 2, 0], "num_accepted": [3, 0, 2, 0], "num_emitted": [4, 1, 3, 1]}
    columns["num_discarded"] = [1, 2, 0, 0]
    found = judged(columns, 99)
    assert found == {1: True, 2: True, 3: True, 4: False, 5: False, 6: True, 7: True}
    profile = measured_profile([found])
    assert profile.rates[0] == pytest.approx(2 / 3) and profile.rates[1] == 1.0 and profile.rates[3] == 0.0
    free = judged(columns | {"num_discarded": [9, 5, 6, 0]}, 99)  # a draft that ran on went back behind the third, not the last
    assert free == found | {8: False, 9: True}


def test_a_run_played_again_has_the_rounds_that_it_had(tmp_path: Path) -> None:
    """From a simulated folder to its texts and back: what the first run's rounds show is all that the second needs."""
    config = composed("method=speculative", f"runs_dir={tmp_path}")
    some, costs = texts(0.7, number=3, tokens=60), flat(0.004, 0.001)
    folder = simulated_run(config, costs, some)
    again, profile = recorded_texts(store.read_samples(folder), store.read_rounds(folder), 60, seed=9)
    assert 0.5 < profile.rates[0] < 0.9
    first, second = (of("speculative", costs, t) for t in (some, again))
    assert [r.num_accepted for o in first.outcomes for r in o.rounds] == [
        r.num_accepted for o in second.outcomes for r in o.rounds
    ]


def test_a_foreseeing_run_played_again_foresees_what_it_did(tmp_path: Path) -> None:
    """Whose candidates the target's tokens were, its phases say; without them others are drawn."""
    config = composed("method=ssd", "method.budget=3", f"runs_dir={tmp_path}")
    costs = flat(0.009, 0.001)
    some = [Profile((0.6,), rank_rate=0.3).text(f"s/{i}", 0, 10, 60, 0) for i in range(4)]
    folder = simulated_run(config, costs, some)
    samples, rounds = store.read_samples(folder), store.read_rounds(folder)

    def phases(of_texts: list[Text]) -> list[str]:
        return [r.phase for o in of("ssd", costs, of_texts, "budget=3").outcomes for r in o.rounds]

    assert phases(recorded_texts(samples, rounds, 60, seed=9)[0]) == phases(some)
    for columns in rounds.values():
        columns["phase"] = [""] * len(columns["phase"])
    assert phases(recorded_texts(samples, rounds, 60, seed=9)[0]) != phases(some)


def test_a_run_is_played_with_what_it_settled_by_itself() -> None:
    node = {"_target_": "x", "draft_length": "auto", "budget": None, "stop": None, "fallback": "draft"}
    settled = as_settled(node, {"draft_length": 16, "budget": 8, "fallback": "lookup", "target_seconds": 0.1})
    assert settled == node | {"draft_length": 16, "budget": 8}


def test_acceptance_as_it_is_written() -> None:
    options, _ = parse(["samples=6", "tokens=400"])
    assert sum(sum(t.right[1:]) for t in texts_of(options, "0.8")) / (6 * 399) == pytest.approx(0.8, abs=0.03)
    assert not any(texts_of(options, "always")[0].right[1:])
    with pytest.raises(ConfigError, match="acceptance='8o'"):
        texts_of(options, "8o")
    with pytest.raises(ConfigError, match="a rate lies between 0 and 1"):
        texts_of(options, "1.2")
    with pytest.raises(ConfigError, match="draft_lengths"):
        parse(["draft_lengths=0,2"])
    with pytest.raises(ValueError, match=r"acceptence=0\.5: unknown option; did you mean acceptance.*possible: acceptance, "):
        parse(["acceptence=0.5"])
    assert parse(["pair.target=x", "method.draft_length=3", "runs_dir=r"])[1] == [
        "pair.target=x",
        "method.draft_length=3",
        "runs_dir=r",
    ]


@pytest.mark.parametrize(
    ("method", "options", "key"),
    [
        ("eagle", (), "method"),
        ("suffix", (), "method"),
        ("pipespec", (), "stage_acceptance"),
        ("speculative", ("stop=confidence",), "method.stop"),
        ("speculative", ("rule=ratio",), "method.rule"),
        ("speculative", ("shape=dynamic",), "method.shape"),
    ],
)
def test_what_cannot_be_simulated_is_refused(method: str, options: tuple[str, ...], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        of(method, flat(1.0, 1.0), texts(0.5, number=1), *options)
    assert caught.value.key == key


def test_where_lines_cross() -> None:
    assert crossing([0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [1.5, 1.5, 1.5]) == pytest.approx(1.5)
    assert crossing([1, 2], [3, 3], [1, 1]) == 1 and crossing([1, 2], [0, 0], [1, 1]) is None
    cells = [Cell("d", "d", "m", 0.8, 4, share, 1.0, speedup) for share, speedup in ((0.1, 2.0), (0.3, 1.2), (0.5, 0.8))]
    assert largest_that_pays(cells) == pytest.approx(0.4)


def test_the_targets_token_stands_at_its_rank_in_the_drafts_list() -> None:
    """With every rank, and with an EOS at the end: a wrong draft is wrong whatever the token."""
    text = Profile((0.5,), rank_rate=0.2).text("s", 0, 5, 3000, 0)
    script = Script(replace(text, eos=True))
    draft = script.drafts[0]
    above = (draft[:3000] > draft[range(3000), script.tokens[:3000]][:, None]).sum(1) + 1
    assert above.tolist() == list(text.rank) and set(text.rank) == set(range(1, MAX_RANK + 1))
    assert script.tokens[2999] == EOS and (draft[:2999].argmax(1) != EOS).all()


# ------------------------------------------------------------------------------------------------ folders
def simulated_run(config: Any, costs: Costs, some: list[Text]) -> Path:
    arms = {"method": play(config.method, costs, some), "baseline": play(config.baseline, costs, some, "baseline")}
    return folders.write(config, PAIR, costs, arms, data_name="acceptance-0.7", acceptance="0.7", seed=0)


def test_a_simulated_folder_is_read_and_never_stands_beside_measured_ones(tmp_path: Path) -> None:
    config = composed("method=speculative", "decoding.max_new_tokens=40", f"runs_dir={tmp_path}")
    folder = simulated_run(config, flat(0.004, 0.001), texts(0.7, number=3, tokens=40))
    run = store.read_run(folder)
    assert run["source"] == store.read_summary(folder)["source"] == "simulated"
    mirrored = tracked_run(folder)
    assert "simulated" in mirrored.tags and mirrored.config["run"]["simulation"] == run["simulation"]
    # The same conditions but for the source: everything that tells machines apart is made equal.
    kept = ("provenance", "device", "simulation", "baseline", "pair", "data")
    twin = finished_run(tmp_path, config, **{name: run[name] for name in kept})
    assert "simulated" not in tracked_run(twin).tags and "source" not in tracked_run(twin).config["run"]
    other = simulated_run(config, flat(0.005, 0.001), texts(0.7, number=3, tokens=40))
    found = groups(load([tmp_path]))
    together = [sorted(Path(f).name for f in group.runs["folder"]) for group in found]
    assert sorted(together) == sorted([[folder.name], [twin.name], [other.name]])
    unmarked = json.loads((folder / store.RUN_FILE).read_text())
    del unmarked["source"]
    (folder / store.RUN_FILE).write_text(json.dumps(unmarked))  # the check can fail: without its mark it stands beside the twin
    assert len(groups(load([folder, twin]))) == 1


def test_no_run_goes_on_in_a_simulated_folder(tmp_path: Path) -> None:
    config = composed("method=speculative", f"runs_dir={tmp_path}")
    folder = simulated_run(config, flat(0.004, 0.001), texts(0.7, number=2, tokens=20))
    config.resume = str(folder)
    with pytest.raises(ConfigError, match="was simulated"):
        resume.finished(config)


def test_the_table_says_where_its_grid_ends_and_which_machines_are_alike() -> None:
    """The twins: acceptance within the grid, and a machine with another speed-up."""
    from specbench.analysis.show.text import table_text
    from specbench.sim.report import Line, table_of

    def line(label: str, speedup: float, pays_from: float) -> Line:
        return Line(label, "speculative", 4, 100.0, speedup, pays_from, None, {}, "folder")

    lines = [line("one H100", 1.5, 0.3), line("phone", 1.501, 0.3), line("laptop", 1.4, 0.41)]
    table = table_of(lines, "0.8", "rooflines", least=0.3)
    text = " ".join(table_text(table).split())
    assert "The speed-ups on one H100, phone are the same" in text and text.count("0.30 or below") == 2
    assert "0.41" in text and "0.41 or below" not in text
    assert table_of(lines[1:], "0.8", "rooflines", least=0.2).notes == []


# ------------------------------------------------------------------------------------------------ the command
def test_the_command_ends_in_a_table_a_figure_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from specbench.sim.__main__ import main

    given = ["devices=2xh100", "methods=speculative,amusd", "acceptances=0.4,0.9", "draft_lengths=2", "draft_shares=0.1,0.9"]
    small = ["samples=1", "tokens=24", "pair=llama3.1_8b_1b", f"runs_dir={tmp_path / 'runs'}", f"out={tmp_path / 'out'}"]
    assert main([*given, *small]) == 0
    printed = capsys.readouterr()
    said = json.loads(printed.out.splitlines()[-1])
    assert [line["method"] for line in said["lines"]] == ["speculative", "amusd"] and "speed-up" in printed.err
    assert (tmp_path / "out" / "figures" / "simulated_speedup.png").stat().st_size > 10_000
    assert all(store.read_run(line["folder"])["source"] == "simulated" for line in said["lines"])
    limits = {store.read_run(line["folder"])["config"]["decoding"]["max_new_tokens"] for line in said["lines"]}
    assert limits == {24}, "what the texts had"
    page = (tmp_path / "out" / "report.md").read_text()
    assert "at acceptance 0.8 as asked (" in page and "at acceptance 0.9 as set" in page
    assert main(["validate", "devices=h100", said["lines"][0]["folder"]]) == 2
    assert "name a finished run that was measured" in capsys.readouterr().err


@pytest.mark.slow
def test_this_machines_costs_are_measured_and_can_be_used(tmp_path: Path) -> None:
    """Real forwards in real processes; every curve, a message's way, and what each schedule does around its forwards."""
    from specbench.sim.__main__ import main

    path = tmp_path / "costs.json"
    small = ["pair=builtin", "engine=eager", "seconds=1", "rows=1,5", "contexts=16,48", "methods=speculative,pearl,pipespec"]
    assert main(["measure", f"out={path}", *small]) == 0
    pair = specify(composed("method=pearl", "pair=builtin").pair)
    costs = load_costs(str(path), pair)
    assert set(costs.curves) == {("target", ALONE), ("target", TURNS), ("draft", TURNS)} and set(costs.beside) == {
        "target",
        "draft",
        "middle",
    }
    assert set(costs.around) == {f"sequential, draft {where}" for where in ("none", "local")} | {"lockstep, draft worker"}
    assert set(costs.around["lockstep, draft worker"]) == {"target", "draft"}
    for around in costs.around.values():
        assert 0 < around["target"] < costs.company("target").seconds(1, 48, (1,))
    assert costs.curve("target", TURNS).seconds(5, 16) > costs.curve("draft", TURNS).seconds(1, 16)
    assert 0 < costs.link.latency_seconds < 0.01
    some = texts(0.7, number=1, tokens=20)
    assert of("pearl", costs, some, "draft_length=3").decode_seconds > 0
    assert of("pipespec", costs, in_chain(some, 0.7, (0.9,), 0)).decode_seconds > 0
    middle, draft = (costs.company(role).seconds(1, 16, (0,)) for role in ("middle", "draft"))
    assert middle > draft  # a larger model

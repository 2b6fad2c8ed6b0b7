"""Numbers from rounds: published aggregates come out, close relatives of the right formula do not, identities bite."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from fake_records import chain_rounds, failed, paired_run, record_of
from hypothesis import given
from hypothesis import strategies as st

from specbench.measure import metrics
from specbench.measure.metrics import IdentityError, RoundTable
from specbench.measure.records.events import Round, SampleRecord
from specbench.measure.records.store import round_columns

KEY = ("s", 0, 0, "method")


def table(*samples: list[Round]) -> RoundTable:
    return RoundTable.of({(f"s/{i}", 0, 0, "method"): rounds for i, rounds in enumerate(samples)})


def test_medusa_7b_published_aggregate() -> None:
    """43,754 tokens in 17,058 rounds on 160 turns give 2.565; dividing by the index of the last round instead gives 2.589."""
    num_tokens, num_rounds, num_samples = 43_754, 17_058, 160
    rng = np.random.default_rng(0)
    emitted = np.ones(num_rounds, dtype=int)
    np.add.at(emitted, rng.permutation(np.repeat(np.arange(num_rounds), 4))[: num_tokens - num_rounds], 1)
    samples = [chain_rounds(part - 1, 5) for part in np.array_split(emitted, num_samples)]
    value = metrics.emitted_per_round(table(*samples))["pooled"]
    assert value == pytest.approx(num_tokens / num_rounds) and round(value or 0, 3) == 2.565
    assert round(num_tokens / (num_rounds - num_samples), 3) == 2.589  # the off-by-one that the literature also prints


def test_vllm_counters() -> None:
    """4,816 rounds, 33,712 drafted, 12,208 accepted: 3.535 emitted per round, 36.2 % accepted."""
    accepted = np.full(4816, 12_208 // 4816)
    accepted[: 12_208 - accepted.sum()] += 1
    made = table(chain_rounds(accepted, 7))
    assert made.num_drafted.sum() == 33_712
    assert metrics.emitted_per_round(made)["pooled"] == pytest.approx(3.535, abs=5e-4)
    assert metrics.accepted_per_round(made)["pooled"] == pytest.approx(2.535, abs=5e-4)
    assert metrics.acceptance_rate(made) == pytest.approx(0.362, abs=5e-4)


def test_pooled_and_mean_of_means_differ() -> None:
    made = table(chain_rounds([4] * 9, 4), chain_rounds([0], 4))
    assert metrics.accepted_per_round(made) == {"pooled": 3.6, "mean_of_sample_means": 2.0}


def test_accepted_run_length_spans_rounds() -> None:
    # Full, full, rejected at 1 | rejected at 0 | full (cut off by the end): runs 4+4+1 and 0; the cut run of 4 is left out.
    made = table(chain_rounds([4, 4, 1, 0, 4], 4))
    assert metrics.accepted_run_length(made)["pooled"] == pytest.approx((9 + 0) / 2)
    assert metrics.accepted_run_length(table(chain_rounds([4, 4], 4))) == {"pooled": None, "mean_of_sample_means": None}
    both = table(chain_rounds([4, 4, 1, 0, 4], 4), chain_rounds([2], 4))  # a run never spans samples
    assert metrics.accepted_run_length(both) == {"pooled": pytest.approx(11 / 3), "mean_of_sample_means": pytest.approx(3.25)}


def test_acceptance_by_position_counts_only_rounds_that_reach_it() -> None:
    deep, shallow = chain_rounds([4, 2, 0], 4), chain_rounds([1, 0], 1)
    made = table(deep, shallow)
    assert metrics.acceptance_by_position(made) == [
        pytest.approx(3 / 5),
        pytest.approx(2 / 3),
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
    ]
    conditional = metrics.conditional_acceptance_by_position(made)
    assert conditional == [pytest.approx(3 / 5), 1.0, pytest.approx(1 / 2), 1.0]
    assert metrics.conditional_acceptance_by_position(table(chain_rounds([0], 2))) == [0.0, None]


def test_what_lies_behind_the_outputs_end_was_neither_kept_nor_rejected() -> None:
    """Four drafts of which the second is the EOS: two are kept, and of the others nobody knows."""
    rounds = chain_rounds([4, 1, 2], 4)
    rounds[2] = dataclasses.replace(rounds[2], num_emitted=2)
    made = table(rounds)
    assert made.cut_off.tolist() == [False, False, True] and made.rejected.tolist() == [False, True, False]
    assert metrics.acceptance_rate(made) == 7 / 12  # of all that was drafted
    assert metrics.acceptance_by_position(made) == [1.0, pytest.approx(2 / 3), pytest.approx(1 / 3), pytest.approx(1 / 3)]
    assert metrics.conditional_acceptance_by_position(made) == [1.0, pytest.approx(2 / 3), 1.0, 1.0]
    assert metrics.accepted_run_length(made)["pooled"] == 5, "the run that the end cuts off is left out"
    last = dataclasses.replace(rounds[2], num_accepted=4, num_emitted=4)
    assert not table([*rounds[:2], last]).cut_off.any(), "a window without a bonus that stands is no cut"


def test_trees_are_counted_by_depth() -> None:
    tree = [dataclasses.replace(r, num_drafted=63, num_target_rows=64, draft_depth=4) for r in chain_rounds([2, 2], 4)]
    assert metrics.acceptance_rate(table(tree)) == 0.5
    assert metrics.acceptance_rate_of_nodes(table(tree)) == pytest.approx(4 / 126)


def test_nothing_drafted_is_none_not_zero() -> None:
    made = table(chain_rounds([0, 0], 0))
    assert metrics.acceptance_rate(made) is None and metrics.acceptance_by_position(made) == []
    assert metrics.emitted_per_round(made)["pooled"] == 1.0
    assert metrics.emitted_per_round(table())["pooled"] is None


def test_rollbacks_and_waste() -> None:
    rounds = chain_rounds([4, 1, 0], 4)
    rounds[2] = dataclasses.replace(rounds[2], stale=True)
    made = table(rounds)
    assert (metrics.rollbacks(made), made.num_discarded.sum(), metrics.stale_rounds(made)) == (2, 7, 1)
    assert metrics.rollback_depth_histogram(made) == {"2": 1, "3": 1}
    assert metrics.accepted_histogram(made) == {"0": 1, "1": 1, "4": 1}


def test_seconds_are_a_partition() -> None:
    rounds = chain_rounds([2] * 10, 4)
    record = record_of(KEY, rounds, overhead=1.1, concurrent_seconds={"draft": 0.2, "idle": 0.1})
    parts = metrics.seconds(RoundTable.of({KEY: rounds}), [record])
    assert parts == {
        "draft": pytest.approx(0.03),
        "verify": pytest.approx(0.06),
        "wait": 0.0,
        "learn": 0.0,
        "other": pytest.approx(0.02),
    }
    assert sum(parts.values()) == pytest.approx(record.decode_seconds, rel=0.01)
    counting = [dataclasses.replace(record, counted={"hits": n, "misses": 1}) for n in (2, 3)]
    assert metrics.counted([*counting, record]) == {"hits": 5, "misses": 2}
    assert metrics.concurrent_seconds([record, record]) == {"draft": pytest.approx(0.4), "idle": pytest.approx(0.2)}


@given(st.lists(st.lists(st.integers(0, 4), max_size=6), max_size=5))
def test_columns_and_rounds_give_the_same_table(accepted: list[list[int]]) -> None:
    rounds = {(f"s/{i}", 0, 0, "method"): chain_rounds(a, 4) for i, a in enumerate(accepted)}
    a, b = RoundTable.of(rounds), RoundTable.of({key: round_columns(value) for key, value in rounds.items()})
    assert a.keys == b.keys and np.array_equal(a.sample, b.sample)
    for name, column in a.columns.items():
        assert np.allclose(column, b.columns[name]) if column.dtype == float else np.array_equal(column, b.columns[name])


def test_arm_keeps_one_arm() -> None:
    _, rounds = paired_run(3, 2)
    made = RoundTable.of(rounds)
    for arm, drafted in (("method", 4), ("baseline", 0)):
        part = made.arm(arm)
        assert {key[3] for key in part.keys} == {arm} and set(part.num_drafted) == {drafted}
        assert part.counts().sum() == len(part) == sum(len(r) for key, r in rounds.items() if key[3] == arm)
    assert len(RoundTable.of({}).arm("method")) == 0


def test_identities_hold_on_sound_records() -> None:
    samples, rounds = paired_run(4, 2)
    one_token = record_of(("one", 0, 0, "method"), [], decode_seconds=0.0, output_ids=(7,))
    metrics.check_identities([*samples, one_token, failed(("f", 0, 0, "method"))], RoundTable.of(rounds))


Change = Callable[[SampleRecord, list[Round]], tuple[SampleRecord, list[Round]]]


def _round(**changes: object) -> Change:
    return lambda record, rounds: (record, [rounds[0], dataclasses.replace(rounds[1], **changes), *rounds[2:]])  # type: ignore[arg-type]


def _record(**changes: object) -> Change:
    return lambda record, rounds: (dataclasses.replace(record, **changes), rounds)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("identity", "change"),
    [
        ("output length", _record(output_ids=(1, 2, 3))),
        ("sum over rounds", _record(num_emitted=3)),
        ("number of round records", _record(num_rounds=4)),
        ("number of round records", lambda record, rounds: (record, rounds[:-1])),
        ("has times", _record(decode_seconds=None)),
        ("no numbers", _record(error="out of memory", finish_reason="error")),
        ("<= decode_seconds", _record(decode_seconds=0.01)),
        ("num_accepted <= draft_depth", _round(num_accepted=5, num_emitted=6)),
        ("draft_depth <= num_drafted", _round(draft_depth=5)),
        ("num_emitted <= num_accepted", _round(num_emitted=4)),
        ("num_accepted <= num_emitted", _round(num_emitted=1)),
        ("draft_depth > 0", _round(draft_depth=0, num_accepted=0, num_emitted=1)),
        ("not negative", _round(num_discarded=-1)),
        ("num_target_rows", _round(num_target_rows=2)),
        ("seconds are not negative", _round(wait_seconds=-0.1)),
        ("t_start <= t_end", _round(t_end=0.001)),
        ("do not overlap", _round(t_start=0.001)),
    ],
)
def test_each_identity_bites(identity: str, change: Change) -> None:
    rounds = chain_rounds([2, 2, 2], 4)
    record, rounds = change(record_of(KEY, rounds), rounds)
    with pytest.raises(IdentityError, match="s") as caught:
        metrics.check_identities([record], RoundTable.of({KEY: rounds}))
    assert identity in caught.value.identity and caught.value.key == KEY

"""The whole run: configuration in, run folder and summary out, on the built-in pair and the stand-in data.

What goes wrong is part of it: failing samples, prompts that do not fit, an exception, Ctrl-C.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_folders import composed

import specbench.run.passes as passes
import specbench.run.prepare as prepare_module
import specbench.run.run as run_module
from specbench import data
from specbench.config.options import ConfigError
from specbench.config.schema import DataConfig, DecodingConfig, EngineConfig, MeasureConfig, PairConfig, RunConfig
from specbench.engine import threads as forward_threads
from specbench.engine.request import Outcome, Request
from specbench.measure import pairing
from specbench.measure.records import provenance, store
from specbench.measure.records.events import SampleRecord
from specbench.measure.records.store import read_power, read_rounds, read_run, read_samples, read_summary
from specbench.measure.sensors import energy_pass
from specbench.measure.sensors.energy import DeviceEnergy
from specbench.measure.sensors.watch import Watch
from specbench.methods.chains.autoregressive import Autoregressive
from specbench.methods.chains.speculative import Speculative
from specbench.pair.load import load_model, load_tokenizer
from specbench.pair.spec import specify
from specbench.processes.placement import Placement
from specbench.run import costs
from specbench.run.arms import warm_up
from specbench.run.console import final_table
from specbench.run.run import run

AR = {"_target_": "specbench.methods.chains.autoregressive.Autoregressive", "draft_length": None}
SD = {"_target_": "specbench.methods.chains.speculative.Speculative", "draft_length": 3}
# The keys that the documentation promises; each holds a number (or a structure) or null with the reason beside it.
PROMISED = [
    *("run_folder", "status", "method", "baseline", "pair", "data", "device", "num_rounds", "decode_tokens"),
    *("decode_tokens_per_second", "baseline_decode_tokens_per_second", "speedup", "emitted_per_round", "accepted_per_round"),
    *("acceptance_rate", "acceptance_by_position", "rollbacks", "num_discarded", "stale_rounds", "seconds"),
    *("concurrent_seconds", "counted", "lossless", "energy", "memory_peak_bytes", "warnings"),
]
PROMISED_INSIDE = {
    "pair": ["target", "draft"],
    "data": ["name", "source", "num_samples"],
    "speedup": ["ratio_of_totals", "geomean", "ci95", "end_to_end"],
    "seconds": ["draft", "verify", "wait", "other"],
    "lossless": ["claim", "verdict", "identical", "compared", "first_divergence"],
    "energy": ["source", "joules_per_token", "baseline_joules_per_token"],
}


@pytest.fixture(autouse=True)
def models_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in models, shared by the tests of this file: a run never changes one. The packages stay as they are, too."""

    def load(spec: Any, vocab_size: int | None = None) -> Any:
        if spec not in LOADED:
            LOADED[spec] = load_model(spec, vocab_size)
        return LOADED[spec]

    monkeypatch.setattr(run_module, "load_model", load)
    monkeypatch.setattr(provenance, "package_facts", PACKAGES)


LOADED: dict[Any, Any] = {}
PACKAGES = functools.cache(provenance.package_facts)


def configured(folder: Path, method: Mapping[str, Any] = SD, baseline: Mapping[str, Any] = AR, **changes: Any) -> RunConfig:
    """A small run; changes are given as section__option=value."""
    config = RunConfig(
        pair=PairConfig(
            name="builtin", target="builtin:target", draft="builtin:draft", target_device="cpu", draft_device="cpu"
        ),
        data=DataConfig(name="humaneval", source="standin", limit=2),
        decoding=DecodingConfig(max_new_tokens=16),
        measure=MeasureConfig(repeats=1, warmup=1, power="off"),
        engine=EngineConfig(threads=1),
        method=dict(method),
        baseline=dict(baseline),
        method_name=method["_target_"].split(".")[3],
        baseline_name=baseline["_target_"].split(".")[3],
        runs_dir=str(folder / "runs"),
        device_lock="off",
    )
    for name, value in changes.items():
        section, _, option = name.partition("__")
        setattr(getattr(config, section), option, value)
    return config


def only_folder(folder: Path) -> Path:
    (found,) = [path.parent for path in (folder / "runs").rglob("run.json")]
    return found


def by_arm(records: list[SampleRecord], arm: str) -> list[SampleRecord]:
    return [record for record in records if record.arm == arm]


@contextlib.contextmanager
def decoding_with(method: type, change: Any) -> Iterator[None]:
    """`change(real, self, request)` instead of a method's `decode`."""
    real = method.decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "decode", lambda self, request: change(real, self, request), raising=False)
        yield


# ---------------------------------------------------------------------------------------------------- what a run leaves behind
@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("finished")
    summary = run(configured(folder, measure__repeats=2, measure__trace=True, data__limit=3))
    return summary, only_folder(folder)


def test_the_summary_holds_every_promised_key(finished: Any) -> None:
    summary, folder = finished
    for key in PROMISED:
        assert key in summary, key
        assert summary[key] is not None or summary[f"{key}_why"], key
    for key, inside in PROMISED_INSIDE.items():
        if summary[key] is not None:
            for name in inside:
                assert name in summary[key], f"{key}.{name}"
    assert read_summary(folder) == json.loads(json.dumps(summary))
    assert summary["run_folder"] == str(folder)


def test_the_summary_says_what_was_run(finished: Any) -> None:
    summary, _ = finished
    assert (summary["status"], summary["method"], summary["baseline"]) == ("success", "speculative", "autoregressive")
    assert summary["data"]["name"] == "humaneval-standin" and summary["data"]["num_samples"] == 3
    assert summary["pair"]["target"]["name"] == "builtin:target" and summary["pair"]["draft"]["name"] == "builtin:draft"
    assert any("stand-in" in warning for warning in summary["warnings"])
    assert summary["lossless"]["verdict"] == "identical" and summary["lossless"]["compared"] == 6
    assert summary["lossless"]["claim"] == "greedy-exact"
    assert summary["energy"]["joules_per_token"] is None and summary["energy"]["joules_per_token_why"]


def test_the_run_folder_holds_its_files(finished: Any) -> None:
    _, folder = finished
    assert {path.name for path in folder.iterdir()} >= {
        "run.json",
        "samples.jsonl",
        "rounds.jsonl",
        "summary.json",
        "trace.json",
    }
    told = read_run(folder)
    assert told["status"] == "success" and told["format_version"] == 2
    assert told["config"]["decoding"]["max_new_tokens"] == 16 and told["provenance"]
    assert set(told["warmup"]) == {"method", "baseline"} and told["device"] == "cpu"
    assert len(told["pair"]["target"]["sha256"]) == 64
    assert told["pair"]["target"]["num_parameters"] > told["pair"]["draft"]["num_parameters"] > 100_000


def test_the_footprint_stands_predicted_beside_measured(finished: Any) -> None:
    summary, _ = finished
    rows = {row["part"]: row for row in summary["memory"]["rows"]}
    for part in ("target_weights", "draft_weights"):
        assert rows[part]["predicted_bytes"] == rows[part]["measured_bytes"], part
    for part in ("target_kv", "draft_kv"):
        assert 0 < rows[part]["predicted_bytes"] <= 4 * rows[part]["measured_bytes"], part
    assert rows["process_peak_rss"]["measured_bytes"] >= rows["process_rss"]["measured_bytes"] > 1e8
    for arm in ("method", "baseline"):
        assert (
            rows[f"{arm}_device_peak"]["measured_bytes"] is None and "cpu" in rows[f"{arm}_device_peak"]["measured_bytes_why"]
        )


class Counter:
    """A device whose energy counter and power sensor say 120 W."""

    device, role, counted = "GPU-120-W", "target", True

    def start(self) -> None:
        pass

    def poll(self) -> dict[str, Any]:
        return {"device": self.device, "watts": 120.0, "temperature_celsius": 50}

    def stop(self, seconds: float, rows: Any) -> DeviceEnergy:
        return DeviceEnergy(self.device, self.role, "nvml_counter", 120.0 * seconds, seconds, 120.0 * seconds)


def test_energy_goes_through_a_run_to_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """power=auto finds a counter: blocks, attribution, power trace with its arms, counters in the timeline; no timed sample."""
    monkeypatch.setattr(costs, "probes", lambda roles: ([Counter()], None))
    for name, option in (("abba_pass", "min_seconds"), ("idle_watts", "seconds")):
        short = functools.partial(getattr(energy_pass, name), **{option: 0.3})
        monkeypatch.setattr(energy_pass, name, short)
    summary = run(configured(tmp_path, data__limit=1, measure__power="auto", measure__trace=True))
    energy, folder = summary["energy"], only_folder(tmp_path)
    assert energy["source"] == "nvml_counter" and energy["watts"] == pytest.approx(120.0)
    assert energy["joules_per_token"] == pytest.approx(120.0 * energy["seconds"] / energy["num_output_tokens"])
    assert sum(energy["joules_by_part"].values()) == pytest.approx(energy["joules"])
    assert energy["joules_by_part"]["draft"] > 0
    assert energy["baseline_joules_by_part"]["draft"] < 0.01 * energy["baseline_joules"], "the time of proposing nothing"
    rows = read_power(folder)
    order = [arm for arm, _ in itertools.groupby(row["arm"] for row in rows)]
    assert order == ["idle", "method", "baseline", "method"] and {row["role"] for row in rows} == {"target"}
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert sum(event["name"].startswith("watts target") for event in events) == len(rows)
    assert {(record.repeat, record.arm) for record in read_samples(folder)} == {(0, "method"), (0, "baseline")}


def test_the_timeline_names_the_device_of_each_role(finished: Any) -> None:
    _, folder = finished
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    titles = {event["args"].get("name") for event in events if event["ph"] == "M"}
    assert {"target (cpu)", "draft (cpu)"} <= titles


def test_figures_follow_from_the_records(finished: Any) -> None:
    summary, folder = finished
    samples, rounds = read_samples(folder), read_rounds(folder)
    assert len(samples) == 3 * 2 * 2 and len({record.key for record in samples}) == len(samples)
    own = by_arm(samples, "method")
    assert summary["decode_tokens"] == sum(len(record.output_ids) - 1 for record in own)
    emitted = [n for record in own for n in rounds[record.key]["num_emitted"]]
    accepted = [n for record in own for n in rounds[record.key]["num_accepted"]]
    assert summary["num_rounds"] == len(emitted) and summary["emitted_per_round"] == pytest.approx(sum(emitted) / len(emitted))
    assert summary["accepted_per_round"] == pytest.approx(sum(accepted) / len(accepted))
    for record in samples:
        columns = rounds[record.key]
        assert sum(columns["num_emitted"]) + 1 == len(record.output_ids) <= 16
        assert record.num_rounds == len(columns["t_start"]) and record.threads == 1
    seconds = summary["seconds"]
    whole = sum(record.decode_seconds or 0.0 for record in own)
    assert sum(seconds[part] for part in ("draft", "verify", "wait", "other")) == pytest.approx(whole, rel=0.01)


def test_both_arms_saw_the_same_prompts_and_each_arm_repeats_itself(finished: Any) -> None:
    _, folder = finished
    found: dict[tuple[str, int], set[Any]] = {}
    for record in read_samples(folder):
        found.setdefault((record.sample_id, record.turn), set()).add((record.prompt_ids, record.output_ids))
    assert len(found) == 3 and all(len(versions) == 1 for versions in found.values())


def test_warm_up_prompts_are_not_measured(finished: Any) -> None:
    _, folder = finished
    config = configured(folder).data
    everything = data.load(config)
    evaluated = data.select(everything, DataConfig(**{**vars(config), "limit": 3}))
    assert {record.sample_id for record in read_samples(folder)} == {sample.sample_id for sample in evaluated}
    warm = data.warmup_samples(everything, evaluated, 1, config)
    assert warm and not {sample.sample_id for sample in warm} & {sample.sample_id for sample in evaluated}


# ------------------------------------------------------------------------------------------------------------- interleaving
def orders(folder: Path) -> list[tuple[str, int, str]]:
    return [(r.sample_id, r.repeat, r.arm) for r in sorted(read_samples(folder), key=lambda record: record.order)]


def test_arms_alternate_within_each_prompt_in_seeded_order(tmp_path: Path) -> None:
    found = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = configured(tmp_path / name, measure__seed=seed, measure__repeats=2, data__limit=2, decoding__max_new_tokens=2)
        run(config)
        found[name] = orders(only_folder(tmp_path / name))
    assert found["a"] == found["b"] != found["c"]
    for sequence in found.values():
        couples = [sequence[i : i + 2] for i in range(0, len(sequence), 2)]
        for (sample, repeat, arm), (other_sample, other_repeat, other_arm) in couples:
            assert (sample, repeat) == (other_sample, other_repeat) and {arm, other_arm} == {"method", "baseline"}
        assert len({couple[0][2] for couple in couples}) == 2  # not always the same arm first


# ------------------------------------------------------------------------------------------------------ one arm, and A/A runs
def test_the_baseline_alone_has_no_speedup_and_says_why(tmp_path: Path) -> None:
    summary = run(configured(tmp_path, method=AR, data__limit=1))
    assert summary["status"] == "success" and summary["speedup"] is None and "baseline itself" in summary["speedup_why"]
    assert summary["decode_tokens_per_second"] > 0 and summary["baseline_decode_tokens_per_second"] is None
    assert {record.arm for record in read_samples(only_folder(tmp_path))} == {"method"}
    assert summary["pair"]["draft"] is None  # nobody asked for one


def test_the_same_method_with_other_options_is_no_baseline_of_itself(tmp_path: Path) -> None:
    summary = run(configured(tmp_path, baseline={**SD, "draft_length": 1}, data__limit=1))
    assert {record.arm for record in read_samples(only_folder(tmp_path))} == {"method", "baseline"}
    assert summary["lossless"]["verdict"] == "identical"


@pytest.mark.parametrize("mode", ["aa", "paired"])
def test_the_arms_of_an_aa_run_have_one_thread_count(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen twice, by speed, it would differ now and then, and the difference would pass for one between the arms."""
    speeds = iter([{1: 0.1, 2: 0.2}, {1: 0.2, 2: 0.1}])  # what the warm-ups happen to find

    def warm_up(arm: Any, requests: Any, threads: int | None) -> dict[str, float]:
        found = next(speeds)
        arm.placement = Placement((), threads or min(found, key=lambda count: found[count]))
        return {}

    threads: list[int] = [1]  # of the opening
    settled: list[Any] = []
    monkeypatch.setattr(passes, "warm_up", warm_up)
    monkeypatch.setattr(forward_threads, "count", lambda: threads[-1])
    monkeypatch.setattr(forward_threads, "use", lambda count: count == threads[-1] or threads.append(count))

    def arm(name: str) -> Any:
        stop = types.SimpleNamespace(fits=lambda _: True)
        method = types.SimpleNamespace(stop=stop, settle=lambda: settled.append((name, threads[-1])))
        return types.SimpleNamespace(placement=None, method=method, run=lambda *_, **__: settled.append((name, "warm")))

    arms: Any = {name: arm(name) for name in ("method", "baseline")}
    conversation: Any = types.SimpleNamespace(
        config=RunConfig(measure=MeasureConfig(mode=mode)),
        request=lambda *_: None,
        turns=lambda _: [0],
        too_long=lambda _: False,
    )
    chosen = passes.warm_up_all(conversation, [None], arms, None)  # type: ignore[list-item]
    assert [entry["threads"] for entry in chosen.values()] == ([1, 1] if mode == "aa" else [1, 2])
    # What rests on measured costs is measured again with the count that was chosen, if it is another than that of the opening.
    assert settled == ([] if mode == "aa" else [("baseline", 2), ("baseline", "warm")]) and threads[-1] == 1


class DriftingArm:
    """An arm whose every run takes 10 % longer than the one before, and 4 % longer with two threads than with one."""

    name, device, method = "method", "cpu", types.SimpleNamespace(placement=None)

    def __init__(self) -> None:
        self.placement, self.now, self.tried = Placement((), 1), 1.0, []

    def run(self, request: Any, **_: Any) -> Any:
        self.now *= 1.1
        self.tried.append(self.placement.threads)
        seconds = self.now * (1.04 if self.placement.threads == 2 else 1.0)
        return types.SimpleNamespace(error=None, decode_seconds=seconds, num_emitted=10), []


@pytest.mark.parametrize(("num_prompts", "decode_seconds", "times"), [(1, 0.02, 13), (2, 0.1, 2), (1, 0.0, 20), (3, 0.3, 1)])
def test_a_choice_of_thread_counts_rests_on_some_decoding(
    num_prompts: int, decode_seconds: float, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of a small pair is over in 20 ms, which chose by chance; what a method keeps of one is not what is compared."""
    monkeypatch.setattr("specbench.run.arms.thread_candidates", lambda *_: [1, 2])
    arm: Any = DriftingArm()
    resets: list[int] = []
    arm.method = types.SimpleNamespace(placement=None, reset=lambda: resets.append(len(arm.tried)))
    arm.run = lambda request, **_: (
        arm.tried.append(request),
        (types.SimpleNamespace(error=None, decode_seconds=decode_seconds, num_emitted=10), []),
    )[1]
    prompts: Any = list(range(num_prompts))
    warm_up(arm, prompts, None)
    turns = [0, *prompts * times]
    assert arm.tried == [prompt for prompt in turns for _ in (1, 2)]
    assert resets == [2 * (1 + num_prompts * n) for n in range(1, times)]
    arm.tried.clear()
    monkeypatch.setattr("specbench.run.arms.thread_candidates", lambda *_: [2])
    warm_up(arm, prompts, None)
    assert arm.tried == [0, *prompts], "nothing to choose"


@pytest.mark.parametrize("better", [1, 2])
def test_thread_counts_take_turns_in_the_warm_up(better: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [better, 3 - better]  # whichever comes first: tried one after the other, the first would win on this machine
    monkeypatch.setattr("specbench.run.arms.thread_candidates", lambda *_: counts)
    arm: Any = DriftingArm()
    tried = warm_up(arm, [None, None], None)  # type: ignore[list-item]
    assert arm.tried == [*counts, *counts[::-1], *counts]
    assert arm.placement.threads == 1 and tried["2"] / tried["1"] == pytest.approx(1.04, rel=0.02)


def test_a_run_says_who_else_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "cores_busy_elsewhere", lambda self: 1.25)
    monkeypatch.setattr("specbench.run.arms.thread_candidates", lambda *_: [1, 2])
    monkeypatch.setattr("specbench.run.arms.MOST_TRIALS", 1)
    summary = run(configured(tmp_path, data__limit=1))
    said = [text.partition(" busy while ") for text in summary["warnings"] if text.startswith("other processes kept 1.2 of")]
    assert [text[2] for text in said] == ["thread counts were chosen", "prompts were timed"]
    watched = read_run(only_folder(tmp_path))["watch"]
    assert watched["cores_busy_elsewhere"] == watched["cores_busy_in_warmup"] == 1.25


def test_an_aa_run_measures_the_baseline_twice(tmp_path: Path) -> None:
    summary = run(configured(tmp_path, measure__mode="aa", data__limit=2))
    assert summary["method"] == summary["baseline"] == "autoregressive"
    assert summary["speedup"]["ratio_of_totals"] > 0 and summary["lossless"]["verdict"] == "identical"
    records = read_samples(only_folder(tmp_path))
    assert {record.arm for record in records} == {"method", "baseline"}
    assert all(record.num_rounds == record.num_emitted for record in records)  # nobody drafts


# --------------------------------------------------------------------------------------------------------- conversations
def prompts_of(folder: Path) -> dict[tuple[str, int, str], str]:
    words = load_tokenizer(specify(PairConfig(target="builtin:target")).target)
    return {(r.sample_id, r.turn, r.arm): words.decode(r.prompt_ids) for r in read_samples(folder)}


def replies_of(folder: Path) -> dict[tuple[str, int, str], str]:
    words = load_tokenizer(specify(PairConfig(target="builtin:target")).target)
    return {
        (r.sample_id, r.turn, r.arm): words.decode(r.output_ids, skip_special_tokens=True)
        for r in read_samples(folder)
        if r.repeat == 0
    }


@pytest.mark.parametrize("history", ["baseline", "own"])
def test_the_second_turn_follows_the_answers_that_were_asked_for(tmp_path: Path, history: str) -> None:
    """The method is made to answer otherwise than the baseline: only then does it show whose answer stands in the prompt."""

    def stubborn(real: Any, self: Any, request: Request) -> Outcome:
        outcome = real(self, request)
        outcome.output_ids = [300] * len(outcome.output_ids)
        return outcome

    changes = {"data__name": "mt_bench", "data__history": history, "measure__repeats": 2, "measure__warmup": 0}
    with decoding_with(Speculative, stubborn):
        summary = run(configured(tmp_path, data__limit=1, decoding__max_new_tokens=8, **changes))
    folder = only_folder(tmp_path)
    records = read_samples(folder)
    assert [(r.turn, r.repeat) for r in by_arm(records, "baseline")] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    prompts, replies = prompts_of(folder), replies_of(folder)
    (sample_id,) = {record.sample_id for record in records}
    assert replies[sample_id, 0, "method"] != replies[sample_id, 0, "baseline"]
    for arm in ("method", "baseline"):
        whose = arm if history == "own" else "baseline"
        assert replies[sample_id, 0, whose] in prompts[sample_id, 1, arm]
        assert prompts[sample_id, 1, arm].startswith(prompts[sample_id, 0, arm])
    assert summary["lossless"]["verdict"] == "different"  # and the verdict is not fooled


def test_dataset_history_generates_the_last_reply_only(tmp_path: Path) -> None:
    changes = {"data__name": "refactorchat", "data__history": "dataset", "data__limit": 1, "measure__warmup": 0}
    run(configured(tmp_path, pair__target_dtype="auto", decoding__max_new_tokens=4, **changes))
    folder = only_folder(tmp_path)
    sample = data.select(
        data.load(DataConfig(name="refactorchat", source="standin")), DataConfig(name="refactorchat", limit=1)
    )[0]
    records = read_samples(folder)
    assert {(record.sample_id, record.turn) for record in records} == {(sample.sample_id, len(sample.turns) - 1)}
    for prompt in prompts_of(folder).values():
        assert all(turn.reference in prompt for turn in sample.turns[:-1] if turn.reference)
        assert sample.turns[-1].user in prompt


# ------------------------------------------------------------------------------------------------------ what can go wrong
def test_a_failing_sample_is_recorded_and_the_run_goes_on(tmp_path: Path) -> None:
    calls: list[str] = []

    def failing(real: Any, self: Any, request: Request) -> Outcome:
        calls.append(request.sample_id)
        if len(calls) == 3:  # two of the warm-up, then the first sample
            self.drafter.session.start(8)  # where both warm-up prompts ended at once it was never started
            self.drafter.session.feed([1, 2, 3])  # in the middle of something
            raise RuntimeError("the draft fell over")
        return real(self, request)

    with decoding_with(Speculative, failing):
        summary = run(configured(tmp_path, data__limit=3))
    failed = [record for record in read_samples(only_folder(tmp_path)) if record.error]
    assert len(failed) == 1 and failed[0].finish_reason == "error" and failed[0].arm == "method"
    assert (
        "RuntimeError: the draft fell over (in " in (failed[0].error or "")
        and ".failing of specbench.methods." in failed[0].error
    )
    assert failed[0].decode_seconds is None and failed[0].num_emitted is None and failed[0].output_ids == ()
    assert summary["status"] == "success" and summary["num_failed"] == 1 and summary["data"]["num_samples"] == 3
    lossless = summary["lossless"]
    assert (lossless["identical"], lossless["compared"], lossless["verdict"]) == (2, 2, "identical")
    assert any("1 of 3 samples failed" in warning and "fell over" in warning for warning in summary["warnings"])


def test_a_conversation_that_failed_once_is_had_in_the_next_repeat(tmp_path: Path) -> None:
    calls: list[Request] = []

    def failing(real: Any, self: Any, request: Request) -> Outcome:
        calls.append(request)
        if len(calls) == 1:
            raise RuntimeError("once")
        return real(self, request)

    changes = {"data__name": "mt_bench", "data__limit": 1, "measure__repeats": 2, "measure__warmup": 0}
    with decoding_with(Autoregressive, failing):
        summary = run(configured(tmp_path, decoding__max_new_tokens=8, **changes))
    folder = only_folder(tmp_path)
    done = {(r.turn, r.repeat) for r in read_samples(folder) if r.arm == "baseline" and r.error is None}
    assert done == {(0, 1), (1, 1)} and summary["status"] == "success"
    (sample_id,) = {record.sample_id for record in read_samples(folder)}
    words = load_tokenizer(specify(PairConfig(target="builtin:target")).target)
    answer = next(r for r in read_samples(folder) if (r.turn, r.repeat, r.arm) == (0, 1, "baseline"))
    assert words.decode(answer.output_ids, skip_special_tokens=True) in prompts_of(folder)[sample_id, 1, "method"]


def test_a_run_without_any_finished_sample_has_failed(tmp_path: Path) -> None:
    def failing(real: Any, self: Any, request: Request) -> Outcome:
        raise RuntimeError("never works")

    with decoding_with(Speculative, failing), decoding_with(Autoregressive, failing):
        summary = run(configured(tmp_path, measure__warmup=0, data__limit=1))
    assert summary["status"] == "failed" == read_run(only_folder(tmp_path))["status"]
    assert summary["decode_tokens_per_second"] is None and summary["speedup"] is None and summary["num_failed"] == 1


REFUSALS = {  # chat templates that refuse what only a run can show
    "a second message": "{% if messages|length > 1 %}{{ raise_exception('one user message only') }}{% endif %}",
    "an empty reply": "{% for m in messages if not m.content %}{{ raise_exception('an empty reply') }}{% endfor %}",
}


@pytest.mark.parametrize(("refusal", "history"), [("a second message", "baseline"), ("an empty reply", "own")])
def test_a_turn_that_the_template_refuses_is_a_failure_of_its_sample_in_both_arms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str, history: str
) -> None:
    words = load_tokenizer(specify(PairConfig(target="builtin:target")).target)
    words.chat_template = REFUSALS[refusal] + "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    monkeypatch.setattr(prepare_module, "load_tokenizer", lambda spec: words)
    calls: list[str] = []

    def silent_on_the_second(real: Any, self: Any, request: Request) -> Outcome:
        """Of every other sample the answer is an end token alone."""
        if request.sample_id not in calls:
            calls.append(request.sample_id)
        outcome = real(self, request)
        silent = replace(outcome, output_ids=[words.eos_token_id], finish_reason="eos", rounds=[])
        return silent if calls.index(request.sample_id) % 2 else outcome

    changes = {"data__name": "mt_bench", "data__history": history, "measure__warmup": 0, "measure__repeats": 2}
    with decoding_with(Speculative, silent_on_the_second), decoding_with(Autoregressive, silent_on_the_second):
        config = configured(tmp_path, data__limit=4, decoding__max_new_tokens=6, **changes)
        summary = run(config)
        folder = only_folder(tmp_path)
        records = read_samples(folder)
        failed = {record.key for record in records if record.error}
        bad = calls if refusal == "a second message" else calls[1::2]
        assert len(calls) == 4, "the run went on"
        assert failed == {(name, 1, repeat, arm) for name in bad for repeat in (0, 1) for arm in ("method", "baseline")}
        assert all("no prompt: TemplateError: " in (r.error or "") for r in records if r.key in failed)
        assert summary["num_failed"] == len(bad)
        (said,) = [text for text in summary["warnings"] if "samples failed" in text]
        assert said.startswith(f"{len(bad)} of 4 samples failed ({', '.join(bad)})")
        assert f"({len(bad)} failed)" in final_table(summary)
        if len(bad) == 4:
            assert summary["status"] == "failed" and summary["speedup"] is None
        else:
            assert summary["status"] == "success" and summary["speedup"]["num_prompts"] == 2
            assert not set(bad) & set(pairing.pair_samples(records).prompts)
            return
        # What failed is tried again when the run is continued; what was finished of other samples would be kept.
        again = run(replace(config, run_folder=str(folder), allow_mixed=True))
    assert again["num_failed"] == 4 and {r.key for r in read_samples(folder)} == {r.key for r in records}


def test_prompts_that_do_not_fit_are_recorded_as_such(tmp_path: Path) -> None:
    config = configured(tmp_path, data__limit=4)
    words = load_tokenizer(specify(config.pair).target)
    samples = data.select(data.load(config.data), config.data)
    lengths = sorted(len(data.render(sample, 0, (), words, "auto")) for sample in samples)
    config.data.max_prompt_tokens = lengths[1]
    config.measure.warmup = 0
    summary = run(config)
    records = read_samples(only_folder(tmp_path))
    long = [record for record in records if record.finish_reason == "prompt_too_long"]
    assert len(long) == 2 * sum(length > lengths[1] for length in lengths) > 0 and len(records) == 8
    assert all(record.error is None and record.decode_seconds is None and record.output_ids == () for record in long)
    assert summary["num_prompt_too_long"] == len(long) / 2 and summary["num_failed"] == 0 and summary["status"] == "success"


def test_a_run_that_raises_says_so_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(passes, "Progress", broken)
    with pytest.raises(OSError, match="no space left"):
        run(configured(tmp_path, measure__warmup=0, data__limit=1))
    told = read_run(only_folder(tmp_path))
    assert told["status"] == "failed" and told["error"] == "OSError: no space left"
    assert not (only_folder(tmp_path) / store.SUMMARY_FILE).exists()


def test_a_failing_warm_up_ends_the_run(tmp_path: Path) -> None:
    def failing(real: Any, self: Any, request: Request) -> Outcome:
        raise ValueError("too small")

    with decoding_with(Speculative, failing), pytest.raises(RuntimeError, match=r"warm-up of the method arm failed.*too small"):
        run(configured(tmp_path, data__limit=1))
    assert read_run(only_folder(tmp_path))["status"] == "failed"


def test_ctrl_c_leaves_what_was_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []

    def interrupted(real: Any, self: Any, request: Request) -> Outcome:
        calls.append(request.sample_id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, request)

    with decoding_with(Speculative, interrupted), pytest.raises(KeyboardInterrupt):
        run(configured(tmp_path, measure__warmup=0, data__limit=3))
    folder = only_folder(tmp_path)
    assert read_run(folder)["status"] == "interrupted"
    assert f"resume={folder} goes on" in capsys.readouterr().err
    records = read_samples(folder)
    assert len(by_arm(records, "method")) == 1 and all(record.error is None for record in records)
    assert set(read_rounds(folder)) == {record.key for record in records}


def test_a_wrong_option_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.draft_length"):
        run(configured(tmp_path, method={**SD, "draft_length": 0}))
    with pytest.raises(ConfigError, match=r"pair\.draft"):
        run(configured(tmp_path, pair__draft="builtin:nothing"))
    with pytest.raises(ConfigError, match=r"measure\.repeats"):
        run(configured(tmp_path, measure__repeats=0))
    with pytest.raises(ConfigError, match=r"method\.rule"):
        run(configured(tmp_path, method={**SD, "rule": "greedy_match"}, decoding__temperature=0.7))
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------------------------------------------------- at temperature
def test_keyed_sampling_is_compared_token_for_token(tmp_path: Path) -> None:
    summary = run(configured(tmp_path, decoding__temperature=0.7, data__limit=2))
    assert summary["lossless"]["claim"] == "sampling-exact" and summary["lossless"]["verdict"] == "identical"


def test_the_ratio_rule_is_not_compared_and_says_why(tmp_path: Path) -> None:
    summary = run(configured(tmp_path, method={**SD, "rule": "ratio"}, decoding__temperature=0.7, data__limit=1))
    lossless = summary["lossless"]
    assert lossless["claim"] == "sampling-exact" and lossless["verdict"] == "not_compared" and lossless["compared"] == 0
    assert "rule ratio keeps the target's law" in " ".join([lossless["verdict_why"], *lossless["not_compared"]])


def test_a_wrong_token_is_found_by_the_verdict(tmp_path: Path) -> None:
    def wrong(real: Any, self: Any, request: Request) -> Outcome:
        outcome = real(self, request)
        outcome.output_ids[3] = (outcome.output_ids[3] + 1) % 1000
        return outcome

    with decoding_with(Speculative, wrong):
        summary = run(configured(tmp_path, data__limit=1, measure__warmup=0))
    assert summary["lossless"]["verdict"] == "different" and summary["lossless"]["first_divergence"]["position"] == 3
    assert summary["lossless"]["first_divergence"]["gap"] > 1e-4


def test_processes_that_share_a_device_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes on one accelerator, or on one core, take turns; on two cores they do not."""
    from dataclasses import replace

    from specbench.run import prepare

    prepared = prepare.prepare(composed("method=amusd", "data=humaneval", "data.source=standin", "data.limit=1"))
    assert prepared.pair.draft is not None
    monkeypatch.setattr(prepare, "available_cores", lambda: (0, 1))
    assert prepare.shared_device(prepared) == []
    monkeypatch.setattr(prepare, "available_cores", lambda: (0,))
    assert "one CPU core" in prepare.shared_device(prepared)[0]
    on_gpu = {role: replace(getattr(prepared.pair, role), device="cuda:0") for role in ("target", "draft")}
    prepared.pair = replace(prepared.pair, **on_gpu)
    assert "cuda:0" in prepare.shared_device(prepared)[0]
    prepared.pair = replace(prepared.pair, draft=replace(prepared.pair.draft, device="cuda:1"))
    assert prepare.shared_device(prepared) == []

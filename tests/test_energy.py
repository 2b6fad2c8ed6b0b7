"""Joules and watts without a device: the real bindings on a stand-in library, a fake sysfs tree, a replayed trace."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from specbench.measure import attribution, summary
from specbench.measure.sensors import energy, energy_pass, nvml, rapl
from specbench.measure.sensors.energy import DeviceEnergy, EnergyMeter, EnergyReading
from specbench.measure.sensors.energy_pass import Block, Work

ROOT = Path(__file__).parents[1]
TARGET, DRAFT = "GPU-fake-0000", "GPU-fake-1111"

# ---------------------------------------------------------------------------------------------------- NVML's stand-in
PREAMBLE = """
import json, os, sys
from specbench.measure import attribution
from specbench.measure.sensors import energy
from specbench.measure.sensors import energy_pass
from specbench.measure.sensors import nvml
from specbench.measure.records import provenance

class Clock:
    '''Moves the library's time and the meter's together.'''
    def __init__(self): self.t = 1000.0; self.set()
    def set(self): open(os.environ["FAKE_NVML_CLOCK"], "w").write(repr(self.t))
    def __call__(self): return self.t
    def run(self, seconds, meter=None):
        for _ in range(round(seconds * 10)):
            self.t = round(self.t + 0.1, 6); self.set()
            if meter: meter.poll()

clock = Clock()
def meter_for(gpus, **options):
    probes, why = energy.probes(gpus, rapl_root=energy.Path("/nonexistent"))
    return energy.EnergyMeter(probes, why=why, now=clock, thread=False, **options)
def out(value): print(json.dumps(value, default=lambda v: v.__dict__, allow_nan=False))
"""

Runner = Callable[..., Any]


@pytest.fixture(scope="module")
def with_nvml(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """run(code, mode="") -> what the code printed as JSON, in a process whose libnvidia-ml is the stand-in."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: the stand-in for libnvidia-ml cannot be built")
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).parent / "fake_nvml" / "nvml.c"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(folder / "libnvidia-ml.so.1"), str(source)]
    subprocess.run(command, check=True, capture_output=True)

    def run(code: str, mode: str = "", **environment: str) -> Any:
        clock = folder / "clock"
        extra = {"LD_LIBRARY_PATH": str(folder), "FAKE_NVML_MODE": mode, "FAKE_NVML_CLOCK": str(clock), "PYTHONPATH": str(ROOT)}
        variables = {**os.environ, **extra, **environment}
        variables.pop("CUDA_VISIBLE_DEVICES", None) if "CUDA_VISIBLE_DEVICES" not in environment else None
        script = PREAMBLE + textwrap.dedent(code)
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=variables, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_the_counter_is_the_source_and_power_checks_it(with_nvml: Runner) -> None:
    reading, rows = with_nvml(
        f"""
        meter = meter_for({{"{TARGET}": "target"}})
        meter.start(); clock.run(12.0, meter)
        out([meter.stop(), meter.rows])
        """
    )
    assert reading["source"] == "nvml_counter"
    assert reading["joules"] == pytest.approx(12 * 200)  # 300 W and 100 W by turns
    device = reading["devices"][0]
    assert (device["device"], device["role"], reading["seconds"]) == (TARGET, "target", pytest.approx(12.0))
    assert device["joules_from_power"] == pytest.approx(2400, rel=0.03)
    assert {
        "time_seconds",
        "watts",
        "utilisation",
        "memory_bytes",
        "temperature_celsius",
        "sm_clock_mhz",
        "throttle_bits",
    } <= set(rows[0])
    assert {row["watts"] for row in rows} == {100.0, 300.0}  # the instantaneous reading, not the averaged one


def test_a_device_without_counter_falls_back_to_power_and_says_so(with_nvml: Runner) -> None:
    reading = with_nvml(
        f"""
        meter = meter_for({{"{TARGET}": "target", "{DRAFT}": "draft"}})
        meter.start(); clock.run(10.0, meter)
        out(meter.stop())
        """
    )
    target, draft = reading["devices"]
    assert (target["source"], draft["source"], reading["source"]) == (
        "nvml_counter",
        "nvml_power",
        "nvml_power",
    )  # the weaker one
    assert draft["joules"] == pytest.approx(500) and "Not Supported" in draft["why"]
    assert reading["joules"] == pytest.approx(2000 + 500)  # every reserved device counts


@pytest.mark.parametrize("mode", ["frozen", ""])
def test_a_counter_that_does_not_advance_is_no_zero(with_nvml: Runner, mode: str) -> None:
    """A frozen counter, and a window of zero width: power stands in where it was sampled, else null with the reason."""
    seconds = 10.0 if mode == "frozen" else 0.0
    reading = with_nvml(
        f"""
        meter = meter_for({{"{TARGET}": "target"}})
        meter.start(); clock.run({seconds}, meter)
        out(meter.stop())
        """,
        mode,
    )
    if seconds:
        assert reading["source"] == "nvml_power" and reading["joules"] == pytest.approx(2000, rel=0.05)
        assert "did not advance" in reading["devices"][0]["why"]
    else:
        assert (reading["source"], reading["joules"]) == ("none", None) and "did not advance" in reading["why"]


def test_a_lost_device_is_null_and_so_is_the_total(with_nvml: Runner) -> None:
    reading = with_nvml(
        f"""
        meter = meter_for({{"{TARGET}": "target", "{DRAFT}": "draft"}})
        os.environ["FAKE_NVML_MODE"] = "lost"
        meter.start(); clock.run(10.0, meter)
        out(meter.stop())
        """
    )
    assert (reading["source"], reading["joules"]) == ("none", None) and "lost" in reading["why"]


def test_old_drivers(with_nvml: Runner) -> None:
    rows = with_nvml(
        f"""
        meter = meter_for({{"{TARGET}": "target"}})
        meter.start(); clock.run(1.0, meter); meter.stop()
        out(meter.rows)
        """,
        "old",
    )
    assert rows[0]["watts"] in (100.0, 300.0) and rows[0]["throttle_bits"] == 1


def test_devices_are_found_by_uuid_or_refused(with_nvml: Runner) -> None:
    assert with_nvml("out(nvml.uuid_of_cuda_device(1))", CUDA_VISIBLE_DEVICES=f"{DRAFT},GPU-fake-0") == TARGET
    assert with_nvml("out(nvml.uuid_of_cuda_device(0))", CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="PCI_BUS_ID") == DRAFT
    refused = """
        try: out(nvml.uuid_of_cuda_device(0))
        except nvml.NvmlUnavailable as error: out(str(error))
        """
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in with_nvml(refused)  # two devices whose order is unknown
    probes, why = with_nvml("out(energy.probes({'GPU-other': 'target'}))")
    assert probes == [] and "GPU-other" in why
    assert with_nvml("out(nvml.device_facts())", "empty")[1] == "NVML is there but names no device"


def test_provenance_records_driver_clocks_and_limit(with_nvml: Runner) -> None:
    facts = with_nvml("out(provenance.collect(['x'])['gpus'])")
    assert [gpu["uuid"] for gpu in facts] == [TARGET, DRAFT]
    gpu = facts[0]
    assert (gpu["name"], gpu["driver"], gpu["power_limit_watts"], gpu["sm_clock_mhz"]) == (
        "FAKE-GPU (test double)",
        "000.00-fake",
        700.0,
        1980,
    )
    assert gpu["mig_mode"] is None and gpu["memory_bytes"] == 80 * 2**30


def test_throttling_heat_and_strangers_are_warned_about(with_nvml: Runner) -> None:
    warnings, strangers = with_nvml(
        f"""
        meter = meter_for({{"{TARGET}": "target"}})
        meter.start(); clock.run(12.0, meter); meter.stop()
        out([energy_pass.trace_warnings(meter.rows), energy_pass.foreign_processes(meter.probes)])
        """,
        "throttled",
    )
    assert any("throttled in 100%" in w and "power cap" in w and "thermal" in w for w in warnings)
    assert any("warmed by 12 degrees" in w for w in warnings)
    assert strangers == {TARGET: [4242]}
    calm = with_nvml(
        f"meter = meter_for({{'{TARGET}': 'target'}}); meter.start(); clock.run(5.0, meter); meter.stop()\n"
        "out([energy_pass.trace_warnings(meter.rows), energy_pass.foreign_processes(meter.probes, own=[4242])])"
    )
    assert calm == [[], {}]


def test_a_whole_pass_over_two_devices(with_nvml: Runner) -> None:
    """ABBA with idle power and attribution, as a run would do it, on a known load."""
    blocks, made, rows = with_nvml(
        f"""
        meter = meter_for({{"{TARGET}": "target", "{DRAFT}": "draft"}})
        idle = {{"{TARGET}": 80.0, "{DRAFT}": 40.0}}
        arms = []
        def run_block(arm, seconds):
            arms.append(arm)
            clock.run(seconds, meter)
            if arm == "baseline":
                return energy_pass.Work(500, {{"target": {{"verify": 9.0, "prefill": 1.0}}}})
            worker = {{"draft": 6.0, "discarded_draft": 2.0}}
            return energy_pass.Work(1000, {{"target": {{"verify": 7.0, "prefill": 1.0}}, "draft": worker}})
        blocks = energy_pass.abba_pass(run_block, meter)
        out([arms, attribution.summarise(blocks, idle), meter.rows])
        """
    )
    assert blocks == ["method", "baseline", "baseline", "method"]
    assert made["joules"] == pytest.approx(2 * 2500) and made["joules_per_token"] == pytest.approx(2.5)
    assert made["baseline_joules_per_token"] == pytest.approx(5.0)
    assert made["net_joules_per_token"] == pytest.approx((5000 - 2 * 10 * 120) / 2000)
    assert made["joules_by_role"] == {"target": pytest.approx(4000), "draft": pytest.approx(1000)}
    parts = made["joules_by_part"]
    assert sum(parts.values()) == pytest.approx(made["joules"])
    # The draft's device, both blocks: 800 J idle over 20 s, 200 J above it over 16 s of drafting, a quarter of it thrown away.
    assert parts["draft"] == pytest.approx(800 * 12 / 20 + 200 * 12 / 16)
    assert parts["discarded_draft"] == pytest.approx(800 * 4 / 20 + 200 * 4 / 16)
    assert parts["wait"] == pytest.approx(800 * 4 / 20 + 1600 * 4 / 20)  # both devices, idle power only
    baseline = made["baseline_joules_by_part"]
    assert baseline["draft"] == 0.0 and baseline["wait"] == pytest.approx(
        1000
    )  # the idle draft device is charged to the baseline
    assert made["attribution_rule"] == attribution.RULE_WITH_IDLE and made["warnings"] == []
    assert len({row["device"] for row in rows}) == 2
    order = [arm for arm, _ in itertools.groupby(row["arm"] for row in rows if row["role"] == "target")]
    assert order == ["method", "baseline", "method"], "every reading says whose block it is of (the two baselines touch)"


def test_the_thread_samples_and_stops(with_nvml: Runner) -> None:
    """With the real clock and thread: a row is there before the block begins, and no thread is left after it."""
    made = with_nvml(
        f"""
        import threading
        del os.environ["FAKE_NVML_CLOCK"]
        probes, why = energy.probes({{"{TARGET}": "target"}}, rapl_root=energy.Path("/nonexistent"))
        meter = energy.EnergyMeter(probes)
        meter.start()
        first = len(meter.rows)
        while len(meter.rows) < 5: pass
        reading = meter.stop()
        names = [t.name for t in threading.enumerate()]
        out([first, names, reading.source, [r["time_seconds"] for r in meter.rows]])
        """
    )
    assert made[0] >= 1 and made[1] == ["MainThread"] and made[2] in ("nvml_counter", "nvml_power")
    assert made[3] == sorted(made[3])


# ---------------------------------------------------------------------------------------------------- RAPL
class FakeRapl:
    """A powercap tree with two packages, memory, a core domain and psys."""

    def __init__(self, root: Path):
        self.root = root
        for name, label, limit in [
            ("intel-rapl:0", "package-0", 1_000_000),
            ("intel-rapl:0:0", "core", 1_000_000),
            ("intel-rapl:0:1", "dram", 500_000),
            ("intel-rapl:1", "package-1", 1_000_000),
            ("intel-rapl:2", "psys", 1_000_000),
            ("intel-rapl-mmio:0", "package-0", 1_000_000),
        ]:
            (root / name).mkdir(parents=True)
            (root / name / "name").write_text(label + "\n")
            (root / name / "max_energy_range_uj").write_text(f"{limit}\n")
            self.set(name, 0)
        (root / "intel-rapl").mkdir()

    def set(self, name: str, microjoules: int) -> None:
        (self.root / name / "energy_uj").write_text(f"{microjoules}\n")


@pytest.fixture
def powercap(tmp_path: Path) -> FakeRapl:
    return FakeRapl(tmp_path / "powercap")


class FakeClock:
    def __init__(self) -> None:
        self.t = 0.0

    def __call__(self) -> float:
        return self.t


def rapl_meter(powercap: FakeRapl, clock: FakeClock) -> EnergyMeter:
    found, why = energy.probes({}, rapl_root=powercap.root)
    return EnergyMeter(found, why=why, now=clock, thread=False)


def test_rapl_counts_packages_and_memory_once(powercap: FakeRapl) -> None:
    assert [domain.name for domain in rapl.domains(powercap.root)] == ["package-0", "package-0/dram", "package-1"]
    clock = FakeClock()
    meter = rapl_meter(powercap, clock)
    meter.start()
    clock.t = 10.0
    for name, value in (
        ("intel-rapl:0", 300_000),
        ("intel-rapl:0:0", 9),
        ("intel-rapl:0:1", 50_000),
        ("intel-rapl:1", 100_000),
    ):
        powercap.set(name, value)
    powercap.set("intel-rapl:2", 900_000)
    reading = meter.stop()
    assert (reading.source, reading.joules, reading.seconds) == ("rapl", pytest.approx(0.45), 10.0)
    assert meter.rows[-1]["watts"] == pytest.approx(0.045)


def test_rapl_wraps_around_several_times(powercap: FakeRapl) -> None:
    clock = FakeClock()
    powercap.set("intel-rapl:0", 900_000)
    meter = rapl_meter(powercap, clock)
    meter.start()
    for step in range(1, 9):  # 8 x 600,000 uJ; the counter holds 0 to 1,000,000
        clock.t = float(step)
        powercap.set("intel-rapl:0", (900_000 + 600_000 * step) % 1_000_001)
        meter.poll()
    reading = meter.stop()
    assert reading.joules == pytest.approx(4.8)
    # The twin: a meter that reads only at the ends sees one wrap at most.
    lazy = (900_000 + 600_000 * 8) % 1_000_001 - 900_000
    assert abs((lazy if lazy >= 0 else lazy + 1_000_001) / 1e6 - 4.8) > 3


def test_rapl_unreadable_or_absent_is_null_with_reason(
    powercap: FakeRapl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    meter = rapl_meter(powercap, clock)
    meter.start()
    clock.t = 10.0
    frozen = meter.stop()
    assert (frozen.source, frozen.joules) == ("none", None) and "did not advance" in (frozen.why or "")
    found, why = energy.probes({}, rapl_root=tmp_path / "nothing")
    assert found == [] and "no RAPL counters" in (why or "")

    def denied(path: Path, *_: object) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path)

    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", denied)
    meter.start()
    assert "root only" in (meter.stop().why or "")  # rights that were taken away in mid-run
    found, why = energy.probes({}, rapl_root=powercap.root)
    assert found == [] and "root only" in (why or "")


def test_a_meter_without_devices_gives_reasons() -> None:
    meter = EnergyMeter([], why="NVML: NVML Shared Library Not Found")
    assert not meter.available
    blocks = energy_pass.abba_pass(lambda arm, seconds: Work(10), meter)
    made = attribution.summarise(blocks)
    for key in ("joules", "joules_per_token", "baseline_joules_per_token"):
        assert made[key] is None and "Shared Library" in made[f"{key}_why"]
    assert made["source"] == "none"
    assert summary.build_summary({}, [], {}, energy=made)["energy"] == made


# ---------------------------------------------------------------------------------------------------- replay and rules
def test_replayed_trace(tmp_path: Path) -> None:
    """A recorded trace (uneven steps, a missing reading) gives the joules under it."""
    points = [(0.0, 100.0), (0.1, 100.0), (0.3, 200.0), (0.4, None), (1.3, 200.0), (2.3, 0.0)]
    path = tmp_path / "power.jsonl"
    path.write_text("".join(json.dumps({"time_seconds": t, "device": "GPU-x", "watts": w}) + "\n" for t, w in points))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert energy.integrate_watts(rows) == pytest.approx(10 + 30 + 200 + 100)
    assert energy.integrate_watts(rows[:1]) is None and energy.integrate_watts([]) is None


def reading(
    joules: float | None, seconds: float = 10.0, role: str = "target", source: str = "nvml_counter", **more: Any
) -> EnergyReading:
    part = DeviceEnergy(
        role,
        role,
        source if joules is not None else "none",
        joules,
        seconds,
        why=None if joules is not None else "gone",
        **more,
    )
    return energy.total_of([part], seconds)


def test_attribution_sums_to_the_whole() -> None:
    for idle in (None, 0.0, 10.0, 1e9):
        for active in ({}, {"verify": 6.0, "draft": 3.0}, {"verify": 6.0, "draft": 9.0, "discarded_draft": 1.0}):
            parts = attribution.attribute(1000.0, 10.0, active, idle)
            assert sum(parts.values()) == pytest.approx(1000.0) and min(parts.values()) >= 0
    assert attribution.attribute(1000.0, 10.0, {"verify": 5.0}, None)["wait"] == 500.0
    assert attribution.attribute(1000.0, 10.0, {"verify": 5.0}, 20.0)["wait"] == pytest.approx(100.0)  # idle power only
    assert attribution.attribute(0.0, 0.0, {}, None) == dict.fromkeys(attribution.PARTS, 0.0)


def test_discarded_share_splits_a_sequential_methods_drafting() -> None:
    parts = attribution.parts_of_work({"draft": 4.0, "verify": 5.0, "wait": 0.0, "other": 1.0}, {}, 0.5, 0.25)
    assert parts == {"target": {"verify": 5.0, "prefill": 0.5}, "draft": {"draft": 3.0, "discarded_draft": 1.0}}
    worker = attribution.parts_of_work({"verify": 5.0}, {"draft": 3.0, "discarded_draft": 2.0, "idle": 1.0}, 0.5, 0.0)
    assert worker["draft"] == {"draft": 3.0, "discarded_draft": 2.0}


def test_one_shared_device_takes_both_roles() -> None:
    work = Work(100, {"target": {"verify": 4.0}, "draft": {"draft": 2.0}})
    made = attribution.summarise([Block("method", reading(600.0), work)])
    assert made["joules_by_part"] == pytest.approx(
        {"draft": 120, "discarded_draft": 0, "verify": 240, "prefill": 0, "wait": 240}
    )
    assert made["attribution_rule"] == attribution.RULE_WITHOUT_IDLE and made["net_joules_per_token"] is None


def test_one_missing_device_makes_the_total_null() -> None:
    present = DeviceEnergy("a", "target", "nvml_counter", 100.0, 10.0)
    gone = DeviceEnergy("b", "draft", "none", None, 10.0, why="GPU is lost")
    total = energy.total_of([present, gone], 10.0)
    assert total.joules is None and "GPU is lost" in (total.why or "")
    host = DeviceEnergy("cpu", "host", "none", None, 10.0, why="root only", counted=False)
    assert energy.total_of([present, host], 10.0).joules == 100.0  # shown, not counted


def test_short_blocks_and_disagreeing_sensors_are_warned_about() -> None:
    short = attribution.summarise([Block("method", reading(100.0, 2.0), Work(10))])
    assert any("as short as 2.0 s" in w for w in short["warnings"])
    off = attribution.summarise([Block("method", reading(187.0, 10.0, joules_from_power=327.0), Work(10))])
    assert any("+75%" in w for w in off["warnings"])
    fine = attribution.summarise([Block("method", reading(187.0, 10.0, joules_from_power=185.0), Work(10))])
    assert fine["warnings"] == []


def test_a_block_that_fails_leaves_no_thread() -> None:
    class Probe:
        device, role, counted = "x", "target", True

        def start(self) -> None: ...

        def poll(self) -> dict[str, Any] | None:
            return {"device": "x", "watts": 1.0}

        def stop(self, seconds: float, rows: Sequence[Any]) -> DeviceEnergy:
            return DeviceEnergy("x", "target", "nvml_counter", 1.0, seconds)

    def fails(arm: str, seconds: float) -> Work:
        raise RuntimeError("out of memory")

    meter = EnergyMeter([Probe()])
    with pytest.raises(RuntimeError, match="out of memory"):
        energy_pass.abba_pass(fails, meter)
    assert meter._thread is None
    meter.start()  # and the meter can be used again
    assert meter.stop().joules == 1.0


# ---------------------------------------------------------------------------------------------------- a real device
@pytest.mark.gpu
def test_a_real_device_counts_more_under_load() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: energy counters of real hardware are not read here")
    uuid = nvml.uuid_of_cuda_device(0)
    found, why = energy.probes({uuid: "target"})
    assert found, why
    meter = EnergyMeter(found, synchronize=torch.cuda.synchronize)
    idle = energy_pass.idle_watts(meter, 3.0)[uuid]
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)

    def work(arm: str, seconds: float) -> Work:
        begin = energy.time.perf_counter()
        while energy.time.perf_counter() - begin < seconds:
            for _ in range(20):
                matrix @ matrix
            torch.cuda.synchronize()
        return Work(100, {"target": {"verify": seconds}})

    blocks = energy_pass.abba_pass(work, meter, 3.0)
    for block in blocks:
        device = block.reading.devices[0]
        assert block.reading.source == "nvml_counter", device.why
        assert device.joules is not None and device.joules / device.seconds > 1.5 * idle > 0
        assert device.joules_from_power == pytest.approx(device.joules, rel=0.35)
    assert any(row["sm_clock_mhz"] for row in meter.rows)

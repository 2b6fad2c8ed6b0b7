"""The example pictures of docs/: a run's timeline as Perfetto shows it, AMUSD and PEARL in two lanes, a power trace.

    python tests/bench/pictures.py docs

About two minutes on an idle machine with two cores and a C compiler: AMUSD and PEARL decode a few of the stand-in's prompts
with the built-in pair. There is no accelerator in this: power comes from the stand-in for NVIDIA's library (tests/fake_nvml),
which draws 300 W and 100 W by turns in one device and 50 W in the other: what a power trace looks like, and no measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import specbench.run.costs as costs
from specbench.analysis.derive.conditions import groups
from specbench.analysis.derive.derive import comparisons
from specbench.analysis.read.frames import load
from specbench.analysis.show import figures_power, figures_time
from specbench.analysis.show.style import COLOURS, Drawing, new_figure, picture, styled
from specbench.config.compose import compose
from specbench.measure.sensors.nvml import NvmlUnavailable
from specbench.run.run import run

STAND_IN = Path(__file__).resolve().parents[1] / "fake_nvml" / "nvml.c"
DEVICES = {"GPU-fake-0000": "target", "GPU-fake-1111": "draft"}
MAX_BYTES = 150_000  # of a picture
SHOWN_SECONDS = 0.25  # of a sample's decoding
TRACE_KEY = "draft: green ones stand in the output, orange ones are thrown away; grey: waits; triangles: rollbacks"
SLICES = {"prefill": 6, "verify": 2, "draft": 4, "discarded_draft": 5, "wait": 7, "idle": 7}


def with_stand_in(arguments: Sequence[str]) -> int:
    """This program again, with the stand-in where the bindings look for NVIDIA's library."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("pictures.py needs a C compiler for the stand-in of libnvidia-ml")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libnvidia-ml.so.1"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(STAND_IN)], check=True)
        return subprocess.call([sys.executable, __file__, *arguments], env={**os.environ, "LD_LIBRARY_PATH": folder})


def measured(method: str, power: str, runs_dir: str, options: argparse.Namespace) -> Path:
    """A run with a timeline; returns its folder."""
    overrides = [
        *("pair=builtin", "engine=eager", f"method={method}"),
        *("data=humaneval", "data.source=standin", f"data.limit={options.prompts}"),
        *(f"decoding.max_new_tokens={options.tokens}", "measure.repeats=1", "measure.warmup=1", "measure.trace=true"),
        *(f"measure.power={power}", f"runs_dir={runs_dir}"),
    ]
    return Path(run(compose(overrides))["run_folder"])


# ------------------------------------------------------------------------------------------------ as Perfetto shows it
def trace_picture(trace: dict[str, Any]) -> bytes:
    """The beginning of the method's first sample: its tracks, its counter; and the power of the whole trace below."""
    events = trace["traceEvents"]
    tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name" and e["pid"] == 1}
    slices = [e for e in events if e["ph"] == "X" and e["pid"] == 1]
    begin = min(e["ts"] for e in slices)
    first = min((e for e in slices if e["name"] in ("draft", "verify")), key=lambda e: e["ts"])["ts"]
    end = first + 1e6 * SHOWN_SECONDS
    lanes = [tid for tid in sorted(tracks) if any(e["tid"] == tid and e["ts"] < end for e in slices)]
    power: dict[str, list[tuple[float, float]]] = {}
    for e in events:
        if e["ph"] == "C" and e["name"].startswith("watts"):
            power.setdefault(e["name"].removeprefix("watts "), []).append((e["ts"] / 1e6, e["args"]["W"]))
    with styled():
        figure, axes = new_figure(3, 1, height=4.6, gridspec_kw={"height_ratios": [len(lanes), 1.2, 1.6]})
        lane_axis, counter_axis, power_axis = axes[:, 0]
        for e in slices:
            if e["ts"] < end:
                colour = COLOURS[SLICES[e["name"]] % len(COLOURS)] if e["name"] in SLICES else "#DDDDDD"
                left, width = (e["ts"] - begin) / 1e3, min(e["dur"], end - e["ts"]) / 1e3
                lane_axis.barh(
                    lanes.index(e["tid"]), width, left=left, height=0.8, color=colour, edgecolor="white", linewidth=0.3
                )
                if width > 10:
                    lane_axis.text(left + width / 2, lanes.index(e["tid"]), e["name"], ha="center", va="center", fontsize=6)
        marks = [e for e in events if e["ph"] == "i" and e["pid"] == 1 and e["ts"] < end]
        lane_axis.plot(
            [(e["ts"] - begin) / 1e3 for e in marks],
            [lanes.index(e["tid"]) + 0.5 for e in marks],
            linestyle="",
            marker="^",
            markersize=4,
            color=COLOURS[0],
        )
        lane_axis.set_yticks(range(len(lanes)), [tracks[tid] for tid in lanes])
        lane_axis.set_ylim(len(lanes) - 0.3, -0.6)
        lane_axis.set_title(TRACE_KEY, loc="left", fontsize=7, pad=3)
        counts = [
            e for e in events if e["ph"] == "C" and e["name"] == "accepted draft tokens" and e["pid"] == 1 and e["ts"] < end
        ]
        counter_axis.step(
            [(e["ts"] - begin) / 1e3 for e in counts], [e["args"]["tokens"] for e in counts], where="post", color=COLOURS[0]
        )
        counter_axis.set_ylabel("accepted\ntokens")
        counter_axis.set_ylim(0, 0.5 + max((e["args"]["tokens"] for e in counts), default=1))
        counter_axis.set_xlabel("ms since the sample began")
        for axis in (lane_axis, counter_axis):
            axis.set_xlim(0, (end - begin) / 1e3)
        for number, (name, points) in enumerate(power.items()):
            power_axis.step(*zip(*points, strict=True), where="post", color=COLOURS[number], label=name, linewidth=0.8)
        power_axis.set_ylabel("watts")
        power_axis.set_ylim(bottom=0)
        power_axis.set_xlabel("seconds of the whole trace: timed samples, then the energy pass")
        power_axis.set_xlim(left=0)
        power_axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=6, frameon=False)
    return picture(Drawing("trace", "", figure, None, ""))  # type: ignore[arg-type]


def write(path: Path, content: bytes) -> None:
    if len(content) > MAX_BYTES:
        sys.exit(f"{path} would have {len(content):,} bytes: more than {MAX_BYTES:,}")
    path.write_bytes(content)
    print(f"{path}: {len(content):,} bytes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    found = False
    with contextlib.suppress(NvmlUnavailable):
        found = [device.uuid for device in costs.nvml.devices()] == list(DEVICES)
    if not found:
        return with_stand_in(sys.argv[1:])
    costs.devices_by_uuid = lambda pair, uses_draft: DEVICES
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as runs_dir:
        amusd = measured("amusd", "auto", runs_dir, options)
        pearl = measured("pearl", "off", runs_dir, options)
        frames = load([amusd, pearl])
        found_groups = groups(frames)
        if len(found_groups) > 1:
            sys.exit("the code changed between the two runs: commit, and make the pictures again")
        group = found_groups[0]
        cells = comparisons(frames, group)
        timelines, power = figures_time.timelines(frames, group, cells[0]), figures_power.power_over_time(frames, group, cells)
        assert timelines is not None and power is not None
        write(options.out / "timelines.png", picture(timelines))
        write(options.out / "power.png", picture(power))
        write(options.out / "trace.png", trace_picture(json.loads((amusd / "trace.json").read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())

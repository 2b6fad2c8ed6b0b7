"""`python -m specbench.qualify`: run the parts, write the page; exit status 1 if one failed."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specbench.config.options import ConfigError
from specbench.config.say import of_file, say
from specbench.processes.child import end_with_parent, run_module
from specbench.qualify.page import PAGE, write_page
from specbench.qualify.plan import FAILED, NOT_RUN, PARTS, Part, Task, result

GRACE_SECONDS = 20.0  # that a part has beyond its time before it is ended from outside


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m specbench.qualify",
        description="Qualify a device: tests, identity, energy, roofline, methods at true scale. One folder, one page.",
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the page and what it was made of; runs/qualify-<date> if not given"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:<number>")
    parser.add_argument("--minutes", type=float, default=25.0, help="for all parts; what does not fit is named as not run")
    parser.add_argument("--parts", help=f"only these, by commas: {','.join(part.name for part in PARTS)}")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # this process is one part
    options = parser.parse_args(arguments)
    try:
        return one(options) if options.part else every(options)
    except ConfigError as error:
        say(str(error))
        return 2
    except OSError as error:
        say(of_file(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130


def every(options: argparse.Namespace) -> int:
    """All chosen parts, each in a process of its own."""
    from specbench.pair.spec import resolve_device

    if not options.minutes > 0:
        raise ConfigError("--minutes", options.minutes, "a positive number")
    names = [part.name for part in PARTS]
    chosen = names if options.parts is None else options.parts.split(",")
    if unknown := [name for name in chosen if name not in names]:
        raise ConfigError("--parts", ",".join(unknown), f"possible: {', '.join(names)}")
    device = resolve_device(options.device, "target", "--device")
    out = (options.out or Path("runs") / time.strftime("qualify-%Y-%m-%d_%H-%M-%S")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    begin, total = time.monotonic(), 60 * options.minutes
    parts = [part for part in PARTS if part.name in chosen]
    failed = 0
    for number, part in enumerate(parts):
        left = total - (time.monotonic() - begin)
        # What those before it did not use is shared out among it and those behind it.
        seconds = left * part.share / sum(other.share for other in parts[number:])
        say(f"[{number + 1}/{len(parts)}] {part.title}: at most {seconds:.0f} s")
        found = _in_process(part, out, device, seconds)
        (out / f"{part.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        write_page(out, device)
        say(f"    {found['status']}: {found['verdict']} ({found['seconds']:.0f} s)")
        failed += found["status"] == FAILED
    say(f"{out / PAGE}")
    return 1 if failed else 0


def _in_process(part: Part, out: Path, device: str, seconds: float) -> dict[str, Any]:
    """What the part found; where its process did not live to say it, that."""
    arguments = [
        "specbench.qualify",
        "--part",
        part.name,
        "--out",
        str(out),
        "--device",
        device,
        "--minutes",
        f"{seconds / 60}",
    ]
    left = out / f"{part.name}.part.json"
    left.unlink(missing_ok=True)
    begin = time.monotonic()
    with (out / f"{part.name}.log").open("w", encoding="utf-8") as log:
        status = run_module(arguments, output=log, timeout_seconds=seconds + GRACE_SECONDS)
    if left.is_file():
        found: dict[str, Any] = json.loads(left.read_text(encoding="utf-8"))
        left.unlink()
    elif status is None:
        found = result(
            FAILED, f"no answer within {seconds + GRACE_SECONDS:.0f} s: ended from outside; {part.name}.log has what it said"
        )
    else:
        found = result(FAILED, f"its process ended with status {status}; {part.name}.log has what it said")
    return {**found, "seconds": time.monotonic() - begin}


def one(options: argparse.Namespace) -> int:
    """One part, in this process; what it found goes into a file that the parent reads."""
    end_with_parent()
    task = Task(options.out, options.device, 60 * options.minutes, say)
    try:
        found = importlib.import_module(f"specbench.qualify.parts.{options.part}").run(task)
    except Exception as error:  # said on the page; the next part may go through
        traceback.print_exc()
        found = result(FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    (task.out / f"{options.part}.part.json").write_text(json.dumps(found), encoding="utf-8")
    return 0 if found["status"] in (NOT_RUN, "passed") else 1


if __name__ == "__main__":
    sys.exit(main())

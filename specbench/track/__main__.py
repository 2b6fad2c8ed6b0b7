"""Mirrors finished runs to a tracker such as W&B; never a source of truth.

    python -m specbench.track RUN... [track=wandb] [track.project=<name>]      mirror finished runs (or all below a folder)

A tracker is fed from the stored files, after the clock has stopped, in a process of its own: one that fails, hangs or crashes
costs a line on stderr, and a run whose tracker was unreachable is mirrored later by the command above. A further tracker is one
file with one class and one YAML (conf/track/<name>.yaml).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from specbench.config.say import say
from specbench.measure.records import store as files
from specbench.measure.records.masking import mask_text
from specbench.processes.child import end_with_parent
from specbench.track.mirror import mirror
from specbench.track.tracker import create


def _by_order() -> int:
    """The child's side of `mirror_apart`."""
    order = json.loads(sys.stdin.buffer.readline())
    end_with_parent()
    tracker = create(order["track"], order["allow_targets"])
    assert tracker is not None
    try:
        print(mirror(Path(order["folder"]), tracker), flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        return 1
    return 0


# ---------------------------------------------------------------------------------------------------- the command
def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 all mirrored, 1 some not, 2 a wrong option."""
    if list(arguments) == ["--order"]:
        return _by_order()
    from specbench.config.compose import compose
    from specbench.config.errors import explain

    overrides = [argument for argument in arguments if "=" in argument and not Path(argument).exists()]
    roots = [Path(argument) for argument in arguments if argument not in overrides]
    if not roots or any(str(root).startswith("-") for root in roots):
        say("python -m specbench.track RUN... [track=wandb] [track.<option>=<value>]; RUN: a run folder, or one above several")
        return 0 if {"-h", "--help"} & set(arguments) else 2
    try:
        if not any(override.startswith("track=") for override in overrides):
            overrides = ["track=wandb", *overrides]
        config = compose(overrides)
        if create(config.track, config.allow_targets) is None:
            raise ValueError("track=none: mirrors nothing; name a tracker")
    except Exception as error:
        say(explain(error, overrides) or f"{type(error).__name__}: {error}")
        return 2
    bad = 0
    for root in roots:
        folders = files.find_run_folders(root)
        if not folders:
            bad += 1
            say(f"{root}: no run folder")
        for folder in folders:
            try:
                if files.read_run(folder).get("status") == "started":
                    say(f"{folder}: left out, it has not ended")
                    continue
                tracker = create(config.track, config.allow_targets)
                assert tracker is not None
                say(f"{folder}: {mirror(folder, tracker)}")
            except Exception as error:  # the next one may go through
                bad += 1
                say(f"{folder}: not mirrored: {type(error).__name__}: {mask_text(str(error))}")
    return 1 if bad else 0


if __name__ == "__main__":
    # By its own name: trackers are subclasses of specbench.track.tracker.Tracker, not of __main__.Tracker.
    from specbench.track.__main__ import main as _main

    sys.exit(_main(sys.argv[1:]))

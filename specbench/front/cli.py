"""The front door: Hydra's configuration in, one `run.run(config)`, its headlines as the last line of stdout.

    python -m specbench method=amusd data=humaneval

Exit status: 0 success, 1 a run that failed, 2 a wrong option; ended from outside: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP. Errors
are one line on stderr; HYDRA_FULL_ERROR=1 shows the traceback instead. Heavy libraries are imported by the run, so that
`--help` and `--cfg job` answer at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from specbench import __version__
from specbench.config.compose import HYDRA_VERSION, compose, parse_arguments, register, to_run_config
from specbench.config.errors import explain
from specbench.config.options import ConfigError
from specbench.config.paths import CONF_DIR
from specbench.config.say import say
from specbench.config.schema import RunConfig
from specbench.front import launchers
from specbench.front.sweep import FINE, JobFailed, Sweep
from specbench.front.table import plain_table
from specbench.measure.headlines import headlines
from specbench.processes.interrupts import interruption, terminated

OK, FAILED, WRONG_OPTION = 0, 1, 2
_FULL_ERROR = "HYDRA_FULL_ERROR"

_AGENT = "WANDB_SWEEP_ID"  # set for the runs of a W&B sweep, whose grid knows no "not for this method"


class RunFailed(RuntimeError):
    """The run ended, its summary is printed, and its status is not success."""


@dataclass
class Task:
    """What Hydra calls with the configuration of the run, or of each job of a sweep."""

    wants_tracebacks: bool
    failures: list[Exception] = field(default_factory=list)  # of a single run: raised, Hydra would add a line of its own

    def __call__(self, cfg: DictConfig) -> None:
        try:
            run_job(cfg)
        except Exception as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:  # the sweep's other jobs go on, and it says how this one ended
                if self.wants_tracebacks:
                    traceback.print_exc()
                raise JobFailed(_line(error, HydraConfig.get().overrides.task)[0]) from error
            if self.wants_tracebacks:
                raise
            self.failures.append(error)


def main(said: list[str] | None = None) -> int:
    """Run the command line in sys.argv; returns the exit status. said: takes the lines about errors, for who wants them too."""
    with terminated():
        return _main(said)


def _main(said: list[str] | None) -> int:
    said = [] if said is None else said

    def end(text: str, status: int) -> int:
        said.append(" ".join(text.split()))
        say(text)
        return status

    if "--version" in sys.argv[1:]:  # Hydra would print its own
        print(f"specbench {__version__}")
        return OK
    task = Task(wants_tracebacks=os.environ.get(_FULL_ERROR) == "1")
    overrides: list[str] = []
    os.environ[_FULL_ERROR] = "1"  # Hydra raises its errors instead of printing them its own way: they are explained here
    try:
        parsed = parse_arguments(sys.argv[1:])
        overrides = parsed.overrides
        register()
        launchers.register()
        if parsed.help:
            from specbench.config import help as page

            print(page.text(overrides, parsed.config_dir))
            return OK
        if _AGENT in os.environ:
            with contextlib.suppress(Exception):  # what is wrong with the options is said below
                typed = sys.argv[1:]
                used = launchers.without_idle_options(typed, lambda some: compose(parse_arguments(some).overrides).method)
                if used != typed:
                    say(f"{launchers.DRAFT_LENGTH} is left out: the sweep's method has none")
                sys.argv[1:] = used
        hydra.main(config_path=str(CONF_DIR), config_name="config", version_base=HYDRA_VERSION)(task)()
    except KeyboardInterrupt as interrupt:
        return end(*interruption(interrupt))
    except Exception as error:
        if task.wants_tracebacks:
            raise
        return end(*_line(error, overrides))
    finally:
        if not task.wants_tracebacks:
            del os.environ[_FULL_ERROR]
    if task.failures:
        return end(*_line(task.failures[0], overrides))
    sweep = launchers.take_ended()
    return OK if sweep is None else end_sweep(sweep)


def end_sweep(sweep: Sweep) -> int:
    """What a sweep leaves on the screen: one table over all jobs, and one JSON document as the last line of stdout.

    The runs of an experiment are also handed to the analysis for a report; where the experiment has a table of its own, that is
    the table.
    """
    say(f"sweep {sweep.name} ended: {sweep.folder}")
    reported = sweep.experiment is not None and any(job.is_finished() for job in sweep.jobs)
    table = write_report(sweep) if reported else None
    print(comparison(sweep) if table is None else table, file=sys.stderr)
    if sweep.report is not None:
        say(f"report: {sweep.report}")
    print(json.dumps(sweep.as_dict(), allow_nan=False), flush=True)
    failed = [job for job in sweep.jobs if job.status not in FINE]
    for job in failed:
        say(f"failed: {sweep.varying(job)}: {job.error}")
    return FAILED if failed else OK


def comparison(sweep: Sweep) -> str:
    """The analysis' table over the runs of a sweep; a plainer one where it has none to give."""
    folders = [job.folder for job in sweep.jobs if job.is_finished()]
    try:
        from specbench.analysis import compare

        return str(compare(folders)) if folders else plain_table(sweep)
    except Exception as error:  # whatever the analysis meets, the sweep is done and says so
        say(f"no comparison by the analysis: {type(error).__name__}: {error}")
        return plain_table(sweep)


def write_report(sweep: Sweep) -> str | None:
    """The analysis' report over the finished runs, in the sweep's folder; returns the experiment's own table if it has one."""
    folders, out = [job.folder for job in sweep.jobs if job.is_finished()], sweep.folder / "report"
    try:
        from specbench.analysis import experiment, has_experiment, report

        if sweep.experiment is not None and has_experiment(sweep.experiment):
            sweep.report, table = experiment(sweep.experiment, folders, out)
            return table
        sweep.report = report(folders, out, title=sweep.name)
    except Exception as error:  # the runs are there, and `python -m specbench.analysis` can be asked again
        say(f"no report by the analysis: {type(error).__name__}: {error}")
    return None


def run_job(cfg: DictConfig) -> None:
    """One run from Hydra's composed configuration; prints its headlines. Raises RunFailed if the run did not succeed."""
    config = to_run_config(cfg)
    if config.resume is not None:
        from specbench.run.resume import adopt

        config = adopt(config, HydraConfig.get().overrides.task)
    summary = run_tracked(config)

    try:
        json.dumps(summary, allow_nan=False)  # a summary holds numbers, or null beside the reason: NaN is no JSON
    except (TypeError, ValueError) as error:
        raise RuntimeError(f"the summary is no JSON ({error}); the records are in {summary.get('run_folder')}") from error
    print(json.dumps(headlines(summary)), flush=True)
    if summary.get("status") != "success":
        why = next((f" ({text})" for text in summary.get("warnings", ()) if "samples failed" in text), "")
        raise RunFailed(
            f"the run ended with status {summary.get('status')!r}{why}; its files are in {summary.get('run_folder')}"
        )


def run_tracked(config: RunConfig) -> dict[str, Any]:
    """The run; when it has ended, well or not, its folder is mirrored to the tracker if there is one."""
    from specbench.track.mirror import mirror_apart
    from specbench.track.tracker import create

    tracked = create(config.track, config.allow_targets) is not None  # wrong options end here, before the run
    from specbench.run.run import run

    if not tracked:
        return run(config)
    opened: list[Path] = []
    try:
        return run(config, opened.append)
    finally:
        if opened and not isinstance(sys.exception(), KeyboardInterrupt):
            mirror_apart(opened[0], config)


def _line(error: Exception, overrides: Sequence[str]) -> tuple[str, int]:
    """What went wrong in one line, and the exit status."""
    line = str(error) if isinstance(error, ConfigError) else explain(error, list(overrides))
    if line is not None:
        return line, WRONG_OPTION
    if isinstance(error, RunFailed | JobFailed):
        return str(error), FAILED
    return " ".join(f"{type(error).__name__}: {error} ({_FULL_ERROR}=1 shows the traceback)".split()), FAILED

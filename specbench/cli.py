"""The front door: Hydra's configuration in, one `run.run(config)`, the summary as the last line of stdout.

    python -m specbench method=amusd data=humaneval

Exit status: 0 success, 1 a run that failed, 2 a wrong option, 130 Ctrl-C. Errors are one line on stderr; HYDRA_FULL_ERROR=1
shows the traceback instead. Heavy libraries are imported by the run, so that `--help` and `--cfg job` answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from specbench import __version__, launcher
from specbench.checks import validate
from specbench.cli_errors import explain, unknown
from specbench.paths import CONF_DIR
from specbench.plugins import register_search_path
from specbench.schema import ConfigError, RunConfig
from specbench.sweep import JobFailed, Sweep, plain_table, say

OK, FAILED, WRONG_OPTION, INTERRUPTED = 0, 1, 2, 130
_FULL_ERROR = "HYDRA_FULL_ERROR"
_HYDRA_VERSION = "1.3"
_AGENT = "WANDB_SWEEP_ID"  # set for the runs of a W&B sweep, whose grid knows no "not for this method"
SAID: list[str] = []  # what this process had to say about errors, for the one that started it (specbench.isolated)


class RunFailed(RuntimeError):
    """The run ended, its summary is printed, and its status is not success."""


def main() -> int:
    """Run the command line in sys.argv; returns the exit status."""
    if "--version" in sys.argv[1:]:  # Hydra would print its own
        print(f"specbench {__version__}")
        return OK
    wants_traceback = os.environ.get(_FULL_ERROR) == "1"
    overrides: list[str] = []
    failures: list[Exception] = []

    def job(cfg: DictConfig) -> None:
        try:
            run_job(cfg)
        except Exception as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:  # the sweep's other jobs go on, and it says how this one ended
                if wants_traceback:
                    traceback.print_exc()
                raise JobFailed(_line(error, HydraConfig.get().overrides.task)[0]) from error
            if wants_traceback:
                raise
            failures.append(error)  # raised, Hydra would add a line of its own

    launcher.wants_tracebacks = wants_traceback
    os.environ[_FULL_ERROR] = "1"  # Hydra raises its errors instead of printing them its own way: they are explained here
    try:
        overrides = _parse(sys.argv[1:]).overrides
        register()
        if _AGENT in os.environ:
            with contextlib.suppress(Exception):  # what is wrong with the options is said below
                used = launcher.without_idle_options(sys.argv[1:], lambda some: compose(_parse(some).overrides).method)
                if used != sys.argv[1:]:
                    say(f"{launcher.DRAFT_LENGTH} is left out: the sweep's method has none")
                sys.argv[1:] = used
        hydra.main(config_path=str(CONF_DIR), config_name="config", version_base=_HYDRA_VERSION)(job)()
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except Exception as error:
        if wants_traceback:
            raise
        return _report(error, overrides)
    finally:
        if not wants_traceback:
            del os.environ[_FULL_ERROR]
    if failures:
        return _report(failures[0], overrides)
    sweep = launcher.take_ended()
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
    failed = [job for job in sweep.jobs if job.status != "success"]
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
    """One run from Hydra's composed configuration; prints its summary. Raises RunFailed if the run did not succeed."""
    config = to_run_config(cfg)
    if config.resume is not None:
        from specbench.resume import adopt

        config = adopt(config, HydraConfig.get().overrides.task)
    summary = run_tracked(config)
    try:
        line = json.dumps(summary, allow_nan=False)  # a summary holds numbers, or null beside the reason: NaN is no JSON
    except (TypeError, ValueError) as error:
        raise RuntimeError(f"the summary is no JSON ({error}); the records are in {summary.get('run_folder')}") from error
    print(line, flush=True)
    if summary.get("status") != "success":
        why = next((f" ({text})" for text in summary.get("warnings", ()) if "samples failed" in text), "")
        raise RunFailed(
            f"the run ended with status {summary.get('status')!r}{why}; its files are in {summary.get('run_folder')}"
        )


def run_tracked(config: RunConfig) -> dict[str, Any]:
    """The run; when it has ended, well or not, its folder is mirrored to the tracker if there is one."""
    from specbench import track

    tracked = track.create(config.track, config.allow_targets) is not None  # wrong options end here, before the run
    from specbench.run import run

    if not tracked:
        return run(config)
    opened: list[Path] = []
    try:
        return run(config, opened.append)
    finally:
        if opened and not isinstance(sys.exception(), KeyboardInterrupt):
            track.mirror_apart(opened[0], config)


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that a command line means, without running it: `compose(["method=speculative", "data.limit=5"])`.

    Raises ConfigError, Hydra's and OmegaConf's errors.
    """
    register()
    with hydra.initialize_config_dir(str(CONF_DIR), job_name="specbench", version_base=_HYDRA_VERSION):
        cfg = hydra.compose("config", overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)  # method_name is an interpolation into Hydra's own node
    try:
        with open_dict(cfg):
            del cfg["hydra"]
        return to_run_config(cfg, overrides)
    finally:
        HydraConfig.instance().cfg = None


def register() -> None:
    """Make known to Hydra: `run_schema` (see conf/config.yaml), the plugins' configurations, the sweeper and the launchers."""
    ConfigStore.instance().store(name="run_schema", node=RunConfig)
    register_search_path()
    launcher.register()


def to_run_config(cfg: DictConfig, overrides: Sequence[str] | None = None) -> RunConfig:
    """Plain, typed and range-checked dataclasses from a composed configuration (without its `hydra` node).

    `overrides`: what was typed, if not in a Hydra job. Raises ConfigError and OmegaConf's errors.
    """
    if overrides is None:
        overrides = HydraConfig.get().overrides.task
    for name in ("method", "baseline"):
        node = cfg.get(name)
        if not isinstance(node, DictConfig) or not node:
            choice = "method" if name == "method" else "method@baseline"
            raise ConfigError(name, None if isinstance(node, DictConfig) else node, f"is chosen by name: write {choice}=<name>")
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, RunConfig)
    _refuse_appended(config, "")
    changed = {override.partition("=")[0].lstrip("+~") for override in overrides}
    if changed & {"pair.target", "pair.draft"} and "pair.name" not in changed:
        config.pair.name = "custom"  # it is no longer the pair that the file describes
    validate(config)
    return config


def _refuse_appended(section: Any, prefix: str) -> None:
    """`+key=value` adds what the schema does not know; outside the open method nodes that is a typo, never an option."""
    declared = [field.name for field in dataclasses.fields(section)]
    for name, value in vars(section).items():
        if name not in declared:
            raise ValueError(unknown(prefix + name, str(value), [prefix + known for known in declared]))
        if dataclasses.is_dataclass(value):
            _refuse_appended(value, f"{prefix}{name}.")


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Hydra's own command line, with its usage text replaced by one line."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{message}; options are written key=value, --help shows them all")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_args(arguments)


def _report(error: Exception, overrides: Sequence[str]) -> int:
    """Say what went wrong; returns the exit status."""
    return _say(*_line(error, overrides))


def _line(error: Exception, overrides: Sequence[str]) -> tuple[str, int]:
    """What went wrong in one line, and the exit status."""
    line = str(error) if isinstance(error, ConfigError) else explain(error, list(overrides))
    if line is not None:
        return line, WRONG_OPTION
    if isinstance(error, RunFailed | JobFailed):
        return str(error), FAILED
    return " ".join(f"{type(error).__name__}: {error} ({_FULL_ERROR}=1 shows the traceback)".split()), FAILED


def _say(text: str, status: int) -> int:
    SAID.append(" ".join(text.split()))
    say(text)
    return status

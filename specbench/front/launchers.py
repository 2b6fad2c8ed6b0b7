"""Hydra's plugins for sweeps: which jobs there are (the sweeper), and how they run (the launchers).

Hydra takes plugins from its own package only, so these classes carry its name; `register` makes them known. The sweeper works
with any launcher: `launcher=serial` and `launcher=isolated` are specbench's own, `hydra/launcher=submitit_slurm` and others run
the same jobs elsewhere.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from specbench.config.compose import PLUGIN_PACKAGE, to_run_config
from specbench.config.schema import RunConfig
from specbench.front.sweep import Job, JobFailed, Sweep, SweepProgress
from specbench.processes.child import death, run_module
from specbench.processes.locks import hold_folder

DRAFT_LENGTH = "method.draft_length"
OUTCOME_VARIABLE = "SPECBENCH_OUTCOME"  # the descriptor of a file in which an isolated job leaves its last words
_ended: list[Sweep] = []  # Hydra drops what a sweeper returns


def register() -> None:
    """Make sweeper and launchers known to Hydra (their options are `config.compose`'s)."""
    for plugin in (SpecbenchSweeper, SerialLauncher, IsolatedLauncher):
        Plugins.instance().register(plugin)
    try:  # Hydra looks its plugins up by name: this module is known by that name too
        package = importlib.import_module("hydra_plugins")
    except ImportError:  # nobody has installed one
        package = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
        package.__path__ = []
    sys.modules[PLUGIN_PACKAGE] = sys.modules[__name__]
    setattr(package, PLUGIN_PACKAGE.rpartition(".")[2], sys.modules[__name__])


def take_ended() -> Sweep | None:
    """The sweep that has just ended, once."""
    return _ended.pop() if _ended else None


def without_idle_options(overrides: Sequence[str], compose: Callable[[list[str]], Any]) -> list[str]:
    """Drop method.draft_length where the method has none (its YAML leaves it null), so that sweeps over methods compose.

    compose: the `method` node of a configuration, from overrides.
    """
    kept = [o for o in overrides if o.partition("=")[0].lstrip("+") != DRAFT_LENGTH]
    if len(kept) == len(overrides) or (compose(kept) or {}).get("draft_length") is not None:
        return list(overrides)
    return kept


def combinations(
    parse: Callable[[list[str]], list[Override]],
    params: Sequence[str],
    jobs: Sequence[Sequence[str]],
    arguments: Sequence[str],
) -> tuple[list[list[str]], list[str]]:
    """The options of each job, and the options that vary.

    For each of `jobs` (without: one that is empty) every combination of the values in params, in the job's own options and on
    the command line. An option that is said twice counts where it is nearest to the user: the command line, then the job. A job
    that is another one for a certain value of an option in params is left out where the command line does not name that value,
    and keeps to it where it does.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # Hydra loads it twice: the later one counts

    batch: list[list[str]] = []
    axes: dict[str, None] = {}
    for job, typed in _wanted(jobs, params, arguments) or [([], arguments)]:
        layers = [parse(list(layer)) for layer in (params, job, typed)]
        keys = [{override.get_key_element().lstrip("+~") for override in layer} for layer in layers]
        kept = [
            override
            for number, layer in enumerate(layers)
            for override in layer
            if not any(override.get_key_element().lstrip("+~") in later for later in keys[number + 1 :])
        ]
        (made,) = BasicSweeper.split_arguments(kept, None)
        batch += made
        axes |= dict.fromkeys(str(override.get_key_element()) for override in kept if override.is_sweep_override())
    return batch, list(axes)


def _wanted(
    jobs: Sequence[Sequence[str]], params: Sequence[str], arguments: Sequence[str]
) -> list[tuple[Sequence[str], Sequence[str]]]:
    """The jobs, each with what of the command line holds for it.

    A job that stands for another, whole but for one option, goes with that option's value: without it where the command line
    has ruled it out, and by itself where the command line names it among others.
    """
    varied, typed = ({key: value for key, _, value in (o.partition("=") for o in said)} for said in (params, arguments))

    def stands_for_another(job: Sequence[str], own: str) -> bool:
        rest = set(job) - {own}
        return any(set(other) <= rest and all(o.partition("=")[0] != own.partition("=")[0] for o in other) for other in jobs)

    wanted: list[tuple[Sequence[str], Sequence[str]]] = []
    for job in jobs:
        pairs = [own.partition("=")[::2] for own in job if stands_for_another(job, own)]
        own = {key: value for key, value in pairs if key in varied and key in typed}
        if all(value in typed[key].split(",") for key, value in own.items()):
            wanted.append((job, [o for o in arguments if o.partition("=")[0] not in own]))
    return wanted


class SpecbenchSweeper(Sweeper):
    """All combinations, each different run once, finished ones kept, failures at the end.

    params: what an experiment varies, by option, in the notation of the command line. jobs: lists of options that belong
    together; there is every combination of params with each of them (`combinations`).
    """

    __module__ = PLUGIN_PACKAGE

    def __init__(self, params: Mapping[str, Any] | None = None, jobs: Sequence[Sequence[str]] | None = None) -> None:
        self.params = [f"{key}={value}" for key, value in (params or {}).items()]
        self.jobs = [[str(option) for option in options] for options in jobs or ()]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Sweep:
        """Run what is left of a sweep. Raises what is wrong with the options of any job before the first one starts."""
        assert self.config is not None and self.launcher is not None and self.hydra_context is not None
        setup_globals()
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        batch, axes = combinations(parser.parse_overrides, self.params, self.jobs, arguments)
        plan = Sweep.plan([self._job(job) for job in batch], self.config.hydra.runtime.choices.get("experiment"), axes)
        plan.folder.mkdir(parents=True, exist_ok=True)
        with hold_folder(plan.folder, "sweep.name"):
            plan.look()
            plan.leave_out()
            plan.write()
            jobs = plan.left()
            progress = SweepProgress(plan)
            own = isinstance(self.launcher, SerialLauncher)
            if own:
                self.launcher.jobs, self.launcher.progress = jobs, progress  # type: ignore[attr-defined]
            try:
                returns = self.launcher.launch([job.line for job in jobs], initial_job_idx=0) if jobs else []
            except BaseException:
                plan.status = "interrupted"
                plan.write()
                raise
            for job, result in zip(jobs, returns, strict=True):
                if not own:
                    job.settle(error_of(result))
            plan.end()
        _ended.append(plan)
        return plan

    def _job(self, overrides: list[str]) -> tuple[list[str], RunConfig]:
        used = without_idle_options(overrides, lambda some: self._compose(some).get("method"))
        cfg = self._compose(used)
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(cfg)  # the methods' names are interpolations into Hydra's own node
        try:
            plain = cfg.copy()
            with open_dict(plain):
                del plain["hydra"]
            return used, to_run_config(plain, used)
        finally:
            HydraConfig.instance().cfg = before

    def _compose(self, overrides: list[str]) -> DictConfig:
        assert self.config is not None and self.hydra_context is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))


def error_of(result: JobReturn) -> str | None:
    """What ended a job; None if nothing did. (Asking a failed result for its value raises.)"""
    if result.status != JobStatus.FAILED:
        return None
    error = result._return_value
    if isinstance(error, JobFailed):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split()) if isinstance(error, BaseException) else str(error)


class SerialLauncher(Launcher):
    """One job after another in this process. A failed job does not stop the others."""

    __module__ = PLUGIN_PACKAGE

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.progress: SweepProgress | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Results in the order of `job_overrides`, whatever the order in which they ran."""
        results: dict[int, JobReturn] = {}
        for index in self.order(len(job_overrides)):
            if self.progress is not None:
                self.progress.before(self.jobs[index])
            result = self.one(list(job_overrides[index]), initial_job_idx + index)
            if self.progress is not None:
                self.jobs[index].settle(error_of(result))
                self.progress.after(self.jobs[index])
            results[index] = result
        return [results[index] for index in range(len(job_overrides))]

    def order(self, count: int) -> Sequence[int]:
        return range(count)

    def one(self, overrides: list[str], number: int) -> JobReturn:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            configure_logging=False,
        )


class IsolatedLauncher(SerialLauncher):
    """One job after another, each in a fresh process, in an order shuffled by `seed`: nothing leaks from one into the next.

    A job's process shows tracebacks if the task that it stands for `wants_tracebacks`.
    """

    __module__ = PLUGIN_PACKAGE

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def order(self, count: int) -> Sequence[int]:
        return random.Random(self.seed).sample(range(count), count)

    def one(self, overrides: list[str], number: int) -> JobReturn:
        result = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
        tracebacks = getattr(self.task_function, "wants_tracebacks", False)
        error = run_isolated([*config_arguments(sys.argv[1:]), *overrides, "hydra.mode=RUN"], tracebacks)
        if error is not None:
            result.status = JobStatus.FAILED
            result.return_value = JobFailed(error)
        return result


def config_arguments(argv: Sequence[str]) -> list[str]:
    """The part of a command line that says where configurations are, for a child to find them too."""
    parsed, _ = get_args_parser().parse_known_args(list(argv))
    named = {"--config-dir": parsed.config_dir, "--config-path": parsed.config_path, "--config-name": parsed.config_name}
    return [part for flag, value in named.items() if value is not None for part in (flag, value)]


def run_isolated(options: Sequence[str], tracebacks: bool = False) -> str | None:
    """One run in a process of its own, to its end, with tracebacks if wanted. Returns None, or what went wrong."""
    with tempfile.TemporaryFile("w+") as outcome:  # without a name: nothing is left of it, whatever ends this process
        environment = {OUTCOME_VARIABLE: str(outcome.fileno()), "HYDRA_FULL_ERROR": "1" if tracebacks else "0"}
        arguments = ["specbench.front.isolated", *options]
        status = run_module(arguments, environment=environment, inherited=[outcome.fileno()])
        assert status is not None, "it was given all the time it wants"
        if status == 0:
            return None
        try:
            outcome.seek(0)
            said = json.load(outcome)["said"]
        except (OSError, ValueError):
            said = []
        return str(said[-1]) if said else f"the job's process {death(status)}"

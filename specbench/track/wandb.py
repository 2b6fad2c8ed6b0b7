"""Weights & Biases. The library is imported when a run is mirrored, in the process that does nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specbench.config.options import ConfigError
from specbench.track.tracker import TrackedRun, Tracker

_STEP = "prompt/index"

# Nothing but what is handed over leaves this process: no code, no command line, no machine or account facts, no console.
_SETTINGS: dict[str, Any] = {
    "console": "off", "disable_git": True, "disable_code": True, "disable_job_creation": True, "save_code": False,
    "x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True, "x_save_requirements": False,
    "program": "specbench", "host": "", "email": "", "username": "", "quiet": True,
}  # fmt: skip


class WandbTracker(Tracker):
    """One W&B run per run folder; rows under `prompt/`, headline numbers in its summary, the folder as an artifact.

    In a W&B sweep the agent's run is taken, so that the sweep finds its metric there.
    """

    def __init__(
        self,
        *,
        project: str = "specbench",
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        mode: str | None = None,
        dir: str | None = None,
        artifact: bool = True,
    ):
        if mode not in (None, "online", "offline"):
            raise ConfigError("track.mode", mode, "possible: online, offline, or null (what WANDB_MODE says)")
        if not project:
            raise ConfigError("track.project", project, "names a W&B project")
        self.project, self.entity, self.group, self.tags = project, entity, group, tuple(tags)
        self.mode, self.dir, self.with_artifact = mode, dir, artifact
        self._run: Any = None
        self._rows = 0

    def start(self, run: TrackedRun) -> None:
        import wandb

        agents = "WANDB_RUN_ID" in os.environ  # a sweep's agent has made the run
        folder = os.environ.get("WANDB_DIR") or self.dir
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
        known = wandb.Settings.model_fields
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=None if agents else self.group or run.group,
            name=run.name,
            id=None if agents else run.id,
            resume="allow",
            job_type="bench",
            tags=[*run.tags, *self.tags],
            config=run.config,
            dir=folder,
            mode=self.mode,  # type: ignore[arg-type]
            settings=wandb.Settings(**{name: value for name, value in _SETTINGS.items() if name in known}),
        )
        self._run.define_metric(_STEP, hidden=True)
        self._run.define_metric("prompt/*", step_metric=_STEP)

    def log(self, row: Mapping[str, Any]) -> None:
        values = {f"prompt/{name}": value for name, value in row.items() if value is not None}
        self._run.log({_STEP: self._rows, **values})
        self._rows += 1

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import wandb

        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
        self._run.log({f"table/{name}": table})

    def figure(self, name: str, path: Path) -> None:
        import wandb

        self._run.log({f"figure/{name}": wandb.Image(str(path))})

    def summary(self, values: Mapping[str, Any]) -> None:
        self._run.log({name: value for name, value in values.items() if isinstance(value, int | float)})  # sweeps look there
        self._run.summary.update(dict(values))

    def artifact(self, name: str, paths: Mapping[str, Path]) -> None:
        import wandb

        if not self.with_artifact:
            return
        artifact = wandb.Artifact(name, type="run", description="the run folder: format in docs/run_folder.md")
        for inside, path in paths.items():
            artifact.add_file(str(path), name=inside, policy="immutable")
        self._run.log_artifact(artifact)

    def finish(self, status: str) -> str:
        if self._run is None:
            return "nothing was started"
        folder = Path(self._run.dir).parent
        where = f"offline: wandb sync {folder}" if folder.name.startswith("offline-") else self._run.url or "W&B"
        self._run.finish(exit_code=0 if status == "success" else 1)
        self._run = None
        return str(where)

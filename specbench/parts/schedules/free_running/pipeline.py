"""The free-running schedule with a chain of drafts: each stage in a process of its own, speculating for the next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specbench.config.options import ConfigError
from specbench.config.specs import PairSpec
from specbench.engine.request import Request
from specbench.parts.contracts import Needs, Setting
from specbench.parts.schedules.free_running.draft import DraftReport, DraftSide
from specbench.parts.schedules.free_running.relay import Relay, RelayReport
from specbench.parts.schedules.free_running.schedule import FreeRunning
from specbench.parts.schedules.two_sides import Exchange


class Pipeline(FreeRunning):
    """stages: names of the drafts, the first of the chain first (`Runtime.load_stage`). stop: of the first. The rest: of each.

    With one stage this is `FreeRunning`.
    """

    name = "free-running chain"

    def __init__(self, stages: Sequence[str], waits_for: int, max_lookahead: int, stale: str, draft_cores: int, stop: object):
        super().__init__(waits_for, max_lookahead, stale, draft_cores, stop)
        self.stages, self.num_workers = list(stages), len(stages)
        self.needs = type(self).needs | Needs(stages=tuple(stages))
        self._names: list[str] = []
        self._counted: dict[str, float] = {}

    def look_up(self, pair: PairSpec) -> dict[str, Path]:
        return {f"stages.{name}": Path(name) for name in self.stages if Path(name).is_dir()}

    def start(self, setting: Setting) -> None:
        """The target's neighbour first: `workers` and `boxes` count down the chain."""
        runtime = setting.runtime
        if runtime.load_stage is None:
            raise ConfigError("pair.draft", None, "this method drafts with models in processes of their own: name one")
        length = runtime.max_new_tokens + self.max_lookahead
        self.boxes = [self.mailbox, *(self.machine.mailbox(length) for _ in self.stages[1:])]
        self._names = []
        for place, stage in enumerate(reversed(self.stages)):
            name, load = runtime.load_stage(stage)
            self._names.insert(0, name)
            program = self.make_stage(setting, place)
            number = len(self.stages) - 1 - place
            self.start_worker(program, "draft" if len(self.stages) == 1 else f"stage {number}", load)

    def make_stage(self, setting: Setting, place: int) -> DraftSide:
        """What the process of a stage runs; place: 0 is the target's neighbour. Picklable."""
        runtime, box, in_chain = setting.runtime, self.boxes[place], place > 0
        assert self.waits_for is not None, "given, not measured"
        if place == len(self.stages) - 1:
            options = (self.max_lookahead, runtime.trace, self.stop, self.waits_for, in_chain)
            return DraftSide(box, runtime.law, *options)
        waiting = (self.max_lookahead, self.waits_for, self.stale)
        return Relay(box, self.boxes[place + 1], runtime.law, setting.rule, *waiting, runtime.trace, in_chain)

    def exchanged(self, request: Request) -> Exchange:
        done = super().exchanged(request)
        self._counted = count_stages(done.reports)
        return done

    def counted(self) -> dict[str, float]:
        return self._counted

    def facts(self) -> dict[str, float | int | str]:
        return {"stages": ", ".join(self._names), "num_processes": 1 + len(self._names)}


def count_stages(reports: Sequence[DraftReport]) -> dict[str, float]:
    """By stage, the first of the chain is 0: forwards, rollbacks, drafts and seconds thrown away, what was verified there."""
    counted: dict[str, float] = {}
    for number, report in enumerate(reversed(reports)):
        counted |= {
            f"stage_{number}_forwards": report.num_forwards,
            f"stage_{number}_rollbacks": sum(count > 0 for _, count in report.discards),
            f"stage_{number}_discarded": report.num_discarded,
            f"stage_{number}_draft_seconds": report.draft_seconds,
            f"stage_{number}_discarded_draft_seconds": report.discarded_seconds,
        }
        if isinstance(report, RelayReport):
            counted |= {f"stage_{number}_verified": report.num_verified, f"stage_{number}_accepted": report.num_accepted}
    return counted

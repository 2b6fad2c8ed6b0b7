"""What a person sees: progress while a run goes on, and a table at its end. Everything goes to stderr; stdout is for JSON."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Any

from rich import progress
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from specbench.config.say import visible
from specbench.measure.records.events import SampleRecord
from specbench.measure.warnings import DOUBTFUL, UNUSABLE, level_of

WIDTH = 100  # columns: no line of the table is longer
_COLOURS = {UNUSABLE: "bold red", DOUBTFUL: "yellow"}  # of warnings


class PlainConsole(Console):
    """Prints every text as it is: no markup in it is read, and no escape in it reaches the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str("\n".join(map(visible, text.split("\n"))), **options)


def console_on(stream: IO[str] | None = None) -> Console:
    """Texts as they are on a stream (None: stderr), in at most 100 columns; colours on a terminal alone, and not where it is
    dumb or NO_COLOR is set to anything (no-color.org)."""
    stream = sys.stderr if stream is None else stream
    options: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False, "force_jupyter": False}
    console = PlainConsole(file=stream, force_terminal=stream.isatty(), **options)
    console.width = min(WIDTH, console.width) if stream.isatty() else WIDTH
    return console


def text_of(table: Table, console: Console) -> str:
    """A table in the columns and colours of a console, without the blanks that lines end in."""
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n"))


class Progress:
    """A bar on a terminal, one plain line per sample elsewhere (batch systems keep logs, not screens).

    It is drawn between samples only, never while a clock runs: nothing here draws by itself.
    """

    def __init__(self, total: int, stream: IO[str] | None = None):
        self.total = total
        self.count = 0
        self._console = console_on(stream)
        self._bar: progress.Progress | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            times = (progress.TimeElapsedColumn(), "<", progress.TimeRemainingColumn())
            self._bar = progress.Progress(
                *(
                    progress.BarColumn(),
                    progress.MofNCompleteColumn(),
                    "samples",
                    *times,
                    progress.TextColumn("{task.description}", markup=False),
                ),
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bar.start()
            self._console.show_cursor(True)  # a run that is killed leaves the terminal as it was
            self._bar.add_task("", total=total)

    def sample(self, record: SampleRecord) -> None:
        """One finished (or failed) sample."""
        self.count += 1
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], advance=1, description=visible(f"{record.arm} {_rate(record)}"), refresh=True
            )
            return
        turn = f" turn {record.turn}" if record.turn else ""
        where = f"{record.sample_id}{turn}, {record.arm}, repeat {record.repeat}"
        self.note(f"[{self.count}/{self.total}] {where}: {_outcome(record)}")

    def note(self, text: str) -> None:
        """A line that stays on the screen."""
        self._console.print(" ".join(text.split()), soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _rate(record: SampleRecord) -> str:
    if record.error is not None or not record.decode_seconds or record.num_emitted is None:
        return record.finish_reason
    return f"{record.num_emitted / record.decode_seconds:.1f} tokens/s"


def _outcome(record: SampleRecord) -> str:
    if record.error is not None:
        return f"{record.finish_reason}: {record.error.strip().splitlines()[-1] if record.error.strip() else 'no message'}"
    if record.prefill_seconds is None:
        return record.finish_reason
    return f"{len(record.output_ids)} tokens, {_rate(record)}, prefill {record.prefill_seconds:.3f} s"


# ---------------------------------------------------------------------------------------------------- the final table
def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _interval(values: Any, digits: int = 2) -> str:
    return "none" if values is None else f"{values[0]:.{digits}f} to {values[1]:.{digits}f}"


def _speed_rows(s: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("decoding, method", f"{_number(s['decode_tokens_per_second'], 1)} tokens/s")]
    if s["baseline_decode_tokens_per_second"] is not None:
        rows.append(("decoding, baseline", f"{_number(s['baseline_decode_tokens_per_second'], 1)} tokens/s"))
    speedup = s["speedup"]
    if speedup is None:
        return [*rows, ("speed-up", f"none: {s.get('speedup_why', 'not computed')}")]
    name = "noise floor (A/A)" if s.get("mode") == "aa" else "speed-up"
    rows.append((name, f"{speedup['ratio_of_totals']:.3f}x, 95 % interval over prompts: {_interval(speedup['ci95'], 3)}"))
    rows.append(("", f"95 % interval over repeats (this machine's noise): {_interval(speedup['ci95_repeats'], 3)}"))
    if not speedup["distinguishable"] and s.get("mode") != "aa":
        rows.append(("", f"NOT DISTINGUISHABLE: {speedup['distinguishable_why']}"))
    rows.append(
        ("  end to end", f"{speedup['end_to_end']:.3f}x with prefill, interval: {_interval(speedup['end_to_end_ci95'], 3)}")
    )
    slower = f"{speedup['share_slower']:.0%} of prompts slower than the baseline"
    rows.append(("  by prompt", f"geometric mean {speedup['geomean']:.3f}x, worst 5 % at {speedup['worst5']:.3f}x, {slower}"))
    return rows


def _round_rows(s: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("emitted per round", f"{_number(s['emitted_per_round'])} tokens per target forward ({s['num_rounds']:,} rounds)")]
    if s["acceptance_rate"] is None:
        return [*rows, ("acceptance", f"none: {s.get('acceptance_rate_why', 'nothing drafted')}")]
    of_trees = s.get("acceptance_rate_of_nodes") not in (None, s["acceptance_rate"])
    counted_how = "drafted positions, by depth" if of_trees else "drafted positions"
    rows.append(
        ("acceptance", f"{s['acceptance_rate']:.1%} of {counted_how}, {_number(s['accepted_per_round'])} tokens per round")
    )
    positions = s["acceptance_by_position"] or []
    shown = ", ".join(f"{rate:.0%}" for rate in positions[:12])
    rows.append(("  by position", shown + (f", ... ({len(positions)} positions)" if len(positions) > 12 else "")))
    thrown = f"{s['rollbacks']:,} rounds threw drafts away, {s['num_discarded']:,} tokens discarded"
    return [*rows, ("rollbacks", f"{thrown}, {s['stale_rounds']:,} stale rounds")]


def _shares(seconds: Mapping[str, float]) -> str:
    """learn: only of a draft that does."""
    total = sum(seconds.values())
    shown = {name.replace("_", " "): value for name, value in seconds.items() if value > 0 or name != "learn"}
    return ", ".join(f"{name} {value / total:.0%}" for name, value in shown.items()) if total > 0 else "-"


def _time_rows(s: Mapping[str, Any]) -> list[tuple[str, str]]:
    total = sum(s["seconds"].values())
    rows = [("where the time went", f"{_shares(s['seconds'])} of {total:,.2f} s decoding, all repeats")]
    if s.get("baseline_seconds"):
        rows.append(("  baseline", f"{_shares(s['baseline_seconds'])} of {sum(s['baseline_seconds'].values()):,.2f} s"))
    if s.get("concurrent_seconds"):
        others = s["concurrent_seconds"]
        named = ", ".join(f"{name.replace('_', ' ')} {value:,.2f} s" for name, value in others.items())
        rows.append(("  draft worker", f"at the same time: {named}"))
    if s.get("counted"):
        shown = {
            name.replace("_", " "): f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
            for name, value in s["counted"].items()
        }
        rows.append(("counted", ", ".join(f"{name} {value}" for name, value in shown.items())))
    return rows


def _lossless_row(lossless: Mapping[str, Any]) -> tuple[str, str]:
    verdict = str(lossless["verdict"]).replace("_", " ")
    if lossless["verdict"] == "not_compared":
        return "lossless", f"not compared: {lossless.get('verdict_why', 'no pairs')}"
    text = f"{verdict}: {lossless['identical']} of {lossless['compared']} outputs identical to the baseline's"
    first = lossless.get("first_divergence")
    if first:
        gap = "no gap measured" if first.get("gap") is None else f"gap {first['gap']:.2g}"
        text += f"; {first['sample_id']} parts at token {first['position']} ({gap})"
    return "lossless", text + f" (claim: {lossless['claim']})"


def _quality_rows(s: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Only where the data set has answers and `data.grade` says how they are compared."""
    if "num_graded" not in s:
        return []
    beside = f", baseline {s['baseline_num_right']} of {s['baseline_num_graded']}" if "baseline_num_graded" in s else ""
    return [("right answers", f"{s['num_right']} of {s['num_graded']}{beside}")]


def _cost_rows(s: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    energy = s["energy"]
    if energy.get("joules_per_token") is not None:
        other = energy.get("baseline_joules_per_token")
        beside = "" if other is None else f", baseline {other:.3f}"
        rows.append(("energy", f"{energy['joules_per_token']:.3f} J/token gross{beside} ({energy['source']})"))
        if energy.get("joules_by_part"):
            rows.append(("  by part", f"{_shares(energy['joules_by_part'])}. {energy['attribution_rule']}"))
    else:
        rows.append(("energy", f"not measured: {energy.get('joules_per_token_why', 'no reason recorded')}"))
    if s["memory_peak_bytes"] is not None:
        rows.append(("peak memory", f"{s['memory_peak_bytes'] / 2**20:,.0f} MiB"))
    return rows


def final_table(summary: Mapping[str, Any], stream: IO[str] | None = None) -> str:
    """The summary as lines that a person can read aloud, as `text_of` makes them for a stream."""
    data, pair = summary["data"], summary["pair"]
    repeats = f"{summary['repeats']} repeat{'' if summary['repeats'] == 1 else 's'}"
    samples = f"{data['num_samples']} sample{'' if data['num_samples'] == 1 else 's'}"
    table = Table.grid("", Column(overflow="fold"), padding=(0, 2, 0, 0))
    for label, text in (
        ("run", f"{summary['method']} against {summary['baseline']}: {summary['status']}"),
        ("pair", f"target {_name(pair.get('target'))}, draft {_name(pair.get('draft'))}"),
        ("engine", f"{summary['backend']}, both arms"),
        ("data", f"{data['name']}, {samples}{_missing(summary)}, {repeats}, source {data.get('source')}"),
        *_speed_rows(summary),
        *_round_rows(summary),
        *_time_rows(summary),
        _lossless_row(summary["lossless"]),
        *_quality_rows(summary),
        *_cost_rows(summary),
    ):
        table.add_row(label, text, style="yellow" if text.startswith("NOT DIST") else None)
    console = console_on(stream)
    before = ""
    for warning in summary["warnings"]:
        level, line = level_of(warning), visible(" ".join(warning.split()))
        label = "" if level == before else f"  {level}" if before else f"warnings: {level}"
        table.add_row(label, Text(f"- {line}", overflow="fold"), style=_COLOURS.get(level))
        before = level
    table.add_row("files", str(summary["run_folder"]))
    return text_of(table, console)


def _missing(s: Mapping[str, Any]) -> str:
    """How many of the samples have no numbers, and why."""
    counts = {"failed": s["num_failed"], "too long": s["num_prompt_too_long"]}
    some = [f"{count} {why}" for why, count in counts.items() if count]
    return f" ({', '.join(some)})" if some else ""


def _name(part: Any) -> str:
    """A model's name from run.json: a string, null, or a dictionary with name or path."""
    if isinstance(part, Mapping):
        part = part.get("name") or part.get("path")
    return "none" if part is None else str(part)

"""python -m specbench.analysis RUNS... [--out DIR] [--experiment NAME]
[--across machines] [--reference] [--notebook] [--unfinished] [--serve]
python -m specbench.analysis compare RUN RUN [--unfinished]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import specbench.analysis as analysis
from specbench.config.say import of_file, visible

COMPARE = "compare"  # the first word, for two runs
ACROSS = ("machines",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Without --out the comparison as text; with it a report. Returns the exit status: 0, 2 for a wrong argument, 1 for a file
    that cannot be read or written, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == [COMPARE]:
        return _said(_two, _parser_of_two().parse_args(arguments[1:]))
    parser = argparse.ArgumentParser(
        prog="python -m specbench.analysis",
        description="Tables, figures and a report from stored runs.",
        epilog="Two runs side by side: python -m specbench.analysis compare RUN RUN",
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, or folders that hold some")
    parser.add_argument("--out", metavar="DIR", help="write report.html, report.md, tables/ and figures/ there")
    parser.add_argument("--experiment", metavar="NAME", help="the report of this experiment; without --out into RUNS/report")
    parser.add_argument("--across", choices=ACROSS, help="list one configuration by machine, side by side")
    parser.add_argument("--reference", action="store_true", help="published numbers beside ours")
    parser.add_argument("--notebook", action="store_true", help="also execute the notebook into DIR (needs the extra `report`)")
    parser.add_argument("--unfinished", action="store_true", help="accept runs that did not end with success")
    parser.add_argument("--title", default="specbench report", help="heading of the report")
    parser.add_argument("--serve", action="store_true", help="a local page that follows the runs while they are made")
    parser.add_argument("--port", type=int, help="of the page; 0 takes a free one")
    parser.add_argument("--host", help="address of the page, this machine alone unless told")
    return _said(_run, parser.parse_args(arguments))


def _said(act: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """What went wrong is one line."""
    try:
        return act(options)
    except KeyboardInterrupt:
        line, status = "interrupted", 130
    except OSError as error:
        line, status = of_file(error), 1
    except (ValueError, ImportError) as error:
        line, status = " ".join(str(error).split()), 2
    print(f"specbench.analysis: {visible(line)}", file=sys.stderr)
    return status


def _parser_of_two() -> argparse.ArgumentParser:
    about = "What tells two runs apart, how their speed-ups stand to each other, whether they say the same."
    parser = argparse.ArgumentParser(prog=f"python -m specbench.analysis {COMPARE}", description=about)
    parser.add_argument("one", metavar="RUN", help="a run folder, called A")
    parser.add_argument("other", metavar="RUN", help="another, called B")
    parser.add_argument("--unfinished", action="store_true", help="accept runs that did not end with success")
    return parser


def _two(options: argparse.Namespace) -> int:
    print(analysis.compare_two(options.one, options.other, unfinished=options.unfinished))
    return 0


def _run(options: argparse.Namespace) -> int:
    more = options.across or options.reference or options.notebook
    if options.serve:
        from specbench.analysis.reports import live

        if more or options.out is not None or options.experiment is not None or options.unfinished:
            raise ValueError("--serve shows what there is and writes nothing: it goes with --port and --host alone")
        host, port = options.host, options.port
        live.serve(options.runs, live.HOST if host is None else host, live.PORT if port is None else port)
    elif options.port is not None or options.host is not None:
        raise ValueError("--port and --host are the page's: add --serve")
    elif options.experiment is not None:
        from specbench.analysis.reports import experiments

        if more:
            raise ValueError("--experiment writes that experiment's report: not with --across, --reference, --notebook")
        if options.out is None and len(options.runs) > 1:
            raise ValueError("with several RUNS, --experiment needs --out DIR")
        experiments.find(options.experiment)  # a wrong name is said before anything is read
        out = Path(options.runs[0]) / "report" if options.out is None else Path(options.out)
        path, table = experiments.report(options.experiment, options.runs, out, unfinished=options.unfinished)
        print(table, path, sep="\n")
    elif options.out is None:
        if more:
            raise ValueError("--across, --reference and --notebook write files: give --out DIR")
        print(analysis.compare(options.runs, unfinished=options.unfinished))
    else:
        path = analysis.report(
            options.runs, options.out, across=options.across, with_reference=options.reference, unfinished=options.unfinished,
            title=options.title, workers=os.cpu_count() or 1,
        )  # fmt: skip
        print(path)
        if options.notebook:
            from specbench.analysis.reports.notebook import execute

            print(execute(options.runs, Path(options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

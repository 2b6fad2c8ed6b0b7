"""`python -m specbench.sim pair=<pair> devices=<preset or file>`: what would this pair do on machines that are not here?

python -m specbench.sim pair=llama3.1_8b_1b devices=h100,2xh100,phone,gpu_npu acceptance=0.8
python -m specbench.sim measure pair=builtin out=costs.json          this machine's costs
python -m specbench.sim pair=builtin devices=costs.json acceptance=runs/<date>/<run>
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from specbench.config.options import ConfigError
from specbench.config.say import counted, of_file, say
from specbench.config.schema import RunConfig
from specbench.measure.records.events import SIMULATED
from specbench.sim.costs import CostError
from specbench.sim.options import SimConfig, parse, refuse_too_many

OK, FAILED, WRONG_OPTION, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. The last line of stdout is a JSON document."""
    parser = argparse.ArgumentParser(prog="python -m specbench.sim", description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="command | key=value | folder", help="see docs/sim.md")
    words = parser.parse_args(arguments).words
    name = words.pop(0) if words and words[0] in COMMANDS else "compare"
    try:
        folders = [word for word in words if "=" not in word]
        options, rest = parse([word for word in words if "=" in word])
        if options.stage_acceptance and name != "compare":
            remedy = f"is of a chain of drafts, which a comparison plays and {name} does not: leave it away"
            raise ConfigError("stage_acceptance", list(options.stage_acceptance), remedy)
        print(json.dumps(COMMANDS[name](options, rest, folders)))
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except Exception as error:
        from specbench.config.errors import explain

        line = str(error) if isinstance(error, ConfigError | CostError) else explain(error, words)
        if line is None and isinstance(error, OSError):
            say(of_file(error))
            return FAILED
        if line is None:
            raise
        say(line)
        return WRONG_OPTION
    return OK


def configuration(rest: Sequence[str], *methods: str) -> tuple[RunConfig, dict[str, Any]]:
    """The run's configuration, on the built-in pair unless told, and the nodes of methods, each with those of the options
    given for methods that it has."""
    from specbench.config.compose import compose

    own = [word for word in rest if not word.startswith(("method=", "method."))]
    chosen = {word: word.removeprefix("method.").partition("=")[0] for word in rest if word.startswith("method.")}
    nodes, taken = {}, set[str]()
    for method in methods:
        node = compose([*own, f"method={method}"], pair="builtin").method
        fitting = [word for word, key in chosen.items() if key.partition(".")[0] in node]
        nodes[method] = compose([*own, f"method={method}", *fitting], pair="builtin").method if fitting else node
        taken.update(fitting)
    # What no method has is said to be unknown; without methods all is asked of the run's own.
    left = [word for word in rest if word not in taken] if methods else rest
    return compose(left, pair="builtin"), nodes


def refuse_folders(folders: Sequence[str]) -> None:
    if folders:
        raise ConfigError("command", folders[0], f"possible: {', '.join(COMMANDS)}, or options as key=value")


def compare(options: SimConfig, rest: Sequence[str], folders: Sequence[str]) -> dict[str, Any]:
    """The methods on machines: a table, a figure, a report in `out`, and a run folder for each line of the table."""
    refuse_folders(folders)
    from pathlib import Path

    from specbench.analysis.show.text import table_text
    from specbench.measure.records.store import is_run_folder
    from specbench.pair.spec import specify
    from specbench.sim.acceptance import rate_of
    from specbench.sim.compare import Bench, line_of, played_best, with_length
    from specbench.sim.folders import write
    from specbench.sim.report import Line, document, largest_share, pays_from

    chosen = [word.partition("=")[2] for word in rest if word.startswith("method=")] or list(options.methods)
    config, nodes = configuration(rest, *chosen)
    pair = specify(config.pair)
    bench = Bench(options, pair, nodes, config.baseline)
    bench.refuse_other_stages()
    sources = {bench.costs(devices).source for devices in options.devices}
    say(f"{counted(len(options.devices), 'machine')}, {counted(len(nodes), 'method')}: {', '.join(nodes)}")
    rate = rate_of(bench.texts(options.acceptance))  # first: it is refused at once where it is none
    cells = bench.over_acceptance()
    recorded = is_run_folder(options.acceptance)
    shares = bench.over_share(options.acceptance)
    lines = []
    for devices in options.devices:
        base = bench.base(devices, options.acceptance)
        for method, node in nodes.items():
            length, played = played_best(bench, devices, method, options.acceptance)
            own = replace(config, method=dict(with_length(node, length)), method_name=method)
            name = "recorded" if recorded else f"acceptance-{options.acceptance}"
            folder = write(
                own, pair, bench.costs(devices, method), {"method": played, "baseline": base},
                data_name=name, acceptance=options.acceptance_said, seed=options.seed,
            )  # fmt: skip
            total = sum(outcome.prefill_seconds + outcome.decode_seconds for outcome in played.outcomes)
            busy = {process: seconds / total for process, seconds in played.busy_seconds.items()}
            speedup = played.tokens_per_second / base.tokens_per_second
            of_acceptance, of_share = line_of(cells, devices, method), line_of(shares, devices, method)
            lines.append(
                Line(
                    *(bench.costs(devices).label, method, length, played.tokens_per_second, speedup),
                    *(pays_from(of_acceptance), largest_share(of_share) if of_share else None, busy, str(folder)),
                )
            )
    doc, tables = document(lines, cells, shares, options.acceptance, rate, " and ".join(sorted(sources)), pair.name)
    path = doc.save(Path(options.out))
    for table in tables:
        print(table_text(table), end="\n\n", file=sys.stderr)
    say(f"report: {path}")
    found = [{"machine": line.label, "method": line.method, "speedup": line.speedup, "folder": line.folder} for line in lines]
    return {"report": str(path), "source": SIMULATED, "lines": found}


def measure(options: SimConfig, rest: Sequence[str], folders: Sequence[str]) -> dict[str, Any]:
    """This machine's costs for a pair, into the file `out`."""
    refuse_folders(folders)
    from specbench.sim.measure import measure as measured

    config, nodes = configuration(rest, *options.methods)
    return {"costs": str(measured(options, config, {"baseline": config.baseline, **nodes}))}


def validate(options: SimConfig, rest: Sequence[str], folders: Sequence[str]) -> dict[str, Any]:
    """Runs against their simulation on the first of `devices`."""
    from specbench.analysis.show.text import table_text
    from specbench.sim.validate import check, table_of

    if rest or not folders:
        raise ConfigError("validate", " ".join([*rest, *folders]), "give run folders, and devices=<file of measured costs>")
    devices = options.devices[0]
    checks = [check(folder, devices, options.seed) for folder in folders]
    print(table_text(table_of(checks, devices)), file=sys.stderr)
    return {"runs": [asdict(one) for one in checks]}


def serve(options: SimConfig, rest: Sequence[str], folders: Sequence[str]) -> dict[str, Any]:
    """Many requests on each machine: latency against their rate, fixed draft lengths against goodput."""
    refuse_folders(folders)
    from pathlib import Path

    from specbench.analysis.show.document import Document
    from specbench.analysis.show.text import table_text
    from specbench.pair.spec import specify
    from specbench.sim.compare import texts_of
    from specbench.sim.figures import serving
    from specbench.sim.hardware import load_costs
    from specbench.sim.report import serving_table
    from specbench.sim.serving import MAX_TEXTS, over_traces, poisson, recorded_arrivals

    pair = specify(configuration(rest)[0].pair)
    if options.arrivals is not None:
        given = recorded_arrivals(Path(options.arrivals))
        traces = {len(given) / max(given[-1], 1e-9): given}
    else:
        count, number = options.replicas, options.replicas * options.num_requests
        traces = {rate: poisson(rate * count, number, options.seed) for rate in options.requests_per_second}
    wanted = len(next(iter(traces.values())))
    few = replace(options, samples=min(wanted, MAX_TEXTS))
    refuse_too_many(few)
    made = texts_of(few, options.acceptance)
    texts = [made[number % len(made)] for number in range(wanted)]
    lengths = sorted({0, *options.draft_lengths})
    doc = Document(f"Simulated serving: {pair.name}")
    doc.warning(f"Nothing here was measured as a speed; which drafts are right is given (acceptance {options.acceptance}).")
    for devices in options.devices:
        costs = load_costs(devices, pair)
        found = over_traces(costs, texts, traces, lengths, options.max_batch, options.replicas)
        table = serving_table(found, costs.label, costs.source, options.replicas)
        table.name = f"serving_{Path(devices).stem}"
        print(table_text(table), end="\n\n", file=sys.stderr)
        doc.add(table)
        if len(found) > 1:
            drawing = serving(found, costs.label, costs.source)
            drawing.name = table.name
            doc.add(drawing)
    return {"report": str(doc.save(Path(options.out))), "source": SIMULATED}


def routing(options: SimConfig, rest: Sequence[str], folders: Sequence[str]) -> dict[str, Any]:
    """Experts that k + 1 rows touch, by the routers of a small random mixture."""
    refuse_folders([*folders, *rest])
    from specbench.analysis.show.text import table_text
    from specbench.sim.report import routing_table
    from specbench.sim.routing import of_tiny_mixture

    if options.experts_per_token > options.experts:
        raise ConfigError("experts_per_token", options.experts_per_token, f"there are {options.experts} experts")
    rows = sorted({1, *(1 + length for length in options.draft_lengths)})
    found = of_tiny_mixture(options.experts, options.experts_per_token, rows, options.tokens, options.seed)
    name = f"A small Mixtral of random weights, {options.experts} experts, {options.experts_per_token} for each token"
    print(table_text(routing_table(found, name)), file=sys.stderr)
    return {"routing": [asdict(one) for one in found]}


COMMANDS: dict[str, Callable[[SimConfig, Sequence[str], Sequence[str]], dict[str, Any]]] = {
    "compare": compare,
    "measure": measure,
    "validate": validate,
    "serve": serve,
    "routing": routing,
}


if __name__ == "__main__":  # a worker process imports this module again, and must not run it
    sys.exit(main())

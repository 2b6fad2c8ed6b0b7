"""`python -m specbench.check method=<name> [pair=builtin] [--config-dir DIR]`: a list of checks, exit status 1 if one fails."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specbench.config.options import ConfigError
from specbench.config.say import of_file, say
from specbench.config.schema import RunConfig
from specbench.measure.records.scratch import scratch
from specbench.processes.interrupts import interruption, terminated

OK, FAILED, WRONG_OPTION = 0, 1, 2
# Continued on the configured pair; short, so that the checks take seconds.
TEXTS = (
    "def add(a, b):\n    ",
    "The first thing to know about",
    "class Stack:\n    def __init__(self):\n        self.items = []\n",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m specbench.check",
        description="Put a method through the identity and law checks.",
        epilog="Options are written as for a run: method=<name> method.rule=<rule> pair=<name> allow_targets=[package] ...",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--config-dir", "-cd", action="append", default=[], help="a folder of your own YAML files")
    options = parser.parse_intermixed_args(arguments)
    try:
        with terminated():
            return check_all(compose(options.overrides, options.config_dir))
    except KeyboardInterrupt as interrupt:
        text, status = interruption(interrupt)
        say(text)
        return status
    except Exception as error:
        from specbench.config.errors import explain

        line = str(error) if isinstance(error, ConfigError) else explain(error, options.overrides)
        if line is None and isinstance(error, OSError):
            say(of_file(error))
            return FAILED
        if line is None:
            raise
        say(line)
        return WRONG_OPTION


def compose(overrides: Sequence[str], config_dirs: Sequence[str]) -> RunConfig:
    """The configuration that the command line means, with further folders of YAML files behind specbench's own."""
    from specbench.config import compose as command_line

    for folder in config_dirs:
        if not Path(folder).is_dir():
            raise ConfigError("--config-dir", folder, "no such folder")
    folders = ",".join(f"file://{Path(folder).resolve()}" for folder in config_dirs)
    return command_line.compose([*overrides, *([f"hydra.searchpath=[{folders}]"] if folders else [])], pair="builtin")


def check_all(config: RunConfig) -> int:
    """All checks on the tiny pair, the first ones on the configured pair too; all on this one where the tiny does not fit."""
    from specbench.check import CHECKS, FIRST_CHECKS, SKIP
    from specbench.check.bench import GREEDY, Bench
    from specbench.check.tiny import PROMPTS, make_tiny_pair
    from specbench.check.tiny_heads import with_tiny_heads

    timeout, total = config.engine.timeout_seconds, len(CHECKS) + len(FIRST_CHECKS)
    with scratch("check") as folder:
        pair = make_tiny_pair(folder)
        node = with_tiny_heads(config.method, pair, folder, config.allow_targets)
        tiny = Bench(node, pair, PROMPTS, config.allow_targets, timeout_seconds=timeout)
        try:
            tiny.method(GREEDY)
        except ConfigError as error:
            print(f"tiny pair: does not fit ({error}); all checks on {config.pair.name}")
            failed, checks, total = 0, CHECKS, len(CHECKS)
        else:
            failed, checks = report(tiny, "tiny pair", CHECKS, 0, total), FIRST_CHECKS
        finally:
            tiny.close()
    bench = configured_bench(config)
    try:
        if checks is FIRST_CHECKS and (why := no_heads(bench)):
            print(f"{SKIP}  [{total}/{total}] {config.pair.name} pair: {why}")
        else:
            failed += report(bench, f"{config.pair.name} pair", checks, total - len(checks), total)
    finally:
        bench.close()
    print(f"{config.method_name}: {'all checks passed' if not failed else f'{failed} checks failed'}")
    return FAILED if failed else OK


def configured_bench(config: RunConfig) -> Any:
    """The method on the configured pair, with a few short prompts."""
    from specbench.check.bench import Bench
    from specbench.pair.backend import choose_backend
    from specbench.pair.load import check_pair, load_tokenizer
    from specbench.pair.spec import specify

    pair = specify(config.pair, config.engine.attention)
    tokenizer = load_tokenizer(pair.target)
    pair, instead = choose_backend(check_pair(pair, tokenizer), config.engine.backend)
    if instead is not None:
        print(instead)
    prompts = [tuple(tokenizer(text).input_ids) for text in TEXTS]
    return Bench(config.method, pair, prompts, config.allow_targets, timeout_seconds=config.engine.timeout_seconds)


def no_heads(bench: Any) -> str | None:
    """Why the configured pair has no heads (or datastore), where none were named and none are its own: nothing to check
    there."""
    from specbench.check.bench import GREEDY

    try:
        bench.method(GREEDY)
    except ConfigError as error:
        own = ("method.heads", "method.datastore")
        return str(error) if error.key in own and bench.node.get(error.key.removeprefix("method.")) is None else None
    except Exception:  # the checks will say what it is
        return None
    return None


def report(bench: Any, title: str, checks: Any, done: int, total: int) -> int:
    """Run and print, each as [n/m] of all; returns the number of failures. done: checks before these."""
    from specbench.check import FAIL, run_check

    failed = 0
    for number, (name, check) in enumerate(checks.items(), start=done + 1):
        say(f"[{number}/{total}] {title}: {name} ...")  # some take a minute, in which nothing else is heard
        result = run_check(bench, check)
        failed += result.status == FAIL
        print(f"{result.status}  [{number}/{total}] {title}: {name}: {result.detail}", flush=True)
    return failed


if __name__ == "__main__":  # a worker process imports this module again, and must not run it
    sys.exit(main())

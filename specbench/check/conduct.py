"""How a method behaves as a plugin: its needs, its options, its end."""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from specbench.check.bench import GREEDY, SAMPLED, Bench
from specbench.check.result import SKIP, Result
from specbench.config.create import create_part
from specbench.config.options import ConfigError
from specbench.method import create_method
from specbench.parts.stops import STOPS

NONSENSE = "no such thing"


def declared_needs(bench: Bench) -> Result:
    """Without the draft that it declares it refuses to open; what it does not declare it neither needs nor takes."""
    needs, method = bench.needs, bench.method(GREEDY)
    bench.decode(GREEDY, bench.request(0))  # the bench gives what is declared and nothing else
    taken = tuple(method.target.tap_layers)
    if taken != tuple(needs.taps):
        return Result.of(f"taps {taken} are taken, {needs.taps} are declared", "")
    if method.pids() and needs.draft != "worker":
        return Result.of(f"it starts processes, and declares draft={needs.draft!r}", "")
    if needs.draft == "none":
        return Result.of(None, "no draft model")
    runtime = bench.runtime(GREEDY)
    bare = bench.create()
    try:
        bare.open(replace(runtime, pair=replace(runtime.pair, draft=None), draft=None))
    except ConfigError as error:
        return Result.of(None, f"draft={needs.draft!r}; without one: {error}")
    except Exception as error:  # whatever it stumbles over: a user would see no reason
        problem = f"without a draft it fails with {type(error).__name__}: {error}; raise ConfigError('pair.draft', ...)"
        return Result.of(problem, "")
    finally:
        bare.close()
    return Result.of(f"it declares draft={needs.draft!r} and opens without one", "")


def wrong_options(bench: Bench) -> Result:
    """Every option refuses nonsense with a ConfigError that names it, in the constructor or when it is opened.

    So do the options of parts: of those that the configuration's own nodes name, and of every stop that the method takes.
    """
    cls = type(bench.create())
    tried = 0
    for name, value in _nonsense_for(cls):
        if name == "draft_length" and bench.node.get(name) is None:
            continue  # null says that the length does not apply
        problem = _accepts(bench, name, {name: value}, value)
        if problem:
            return Result.of(problem, "")
        tried += 1
    for option, node in _nodes(bench, cls):
        for name, value in _nonsense_for(type(create_part(node, object, bench.allow_targets, f"method.{option}"))):
            problem = _accepts(bench, f"{option}.{name}", {option: {**node, name: value}}, value)
            if problem:
                return Result.of(problem, "")
            tried += 1
    try:
        create_method({**bench.node, "no_such_option": 1}, bench.allow_targets)
    except ConfigError:
        return Result.of(None, f"{tried} wrong values refused by name")
    return Result.of("it takes options that it does not know", "")


def _nonsense_for(cls: type) -> Iterator[tuple[str, object]]:
    """Every option of a class with a wrong value; numbers with a negative one too."""
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD and name != "key":  # a part's place in the configuration, no option
            yield name, NONSENSE
            if isinstance(parameter.default, (int, float)) and not isinstance(parameter.default, bool):
                yield name, -1


def _nodes(bench: Bench, cls: type) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The options whose values are nodes of their own, and stops by their nodes where the method takes them."""
    for option, value in bench.node.items():
        if isinstance(value, Mapping) and "_target_" in value:
            yield option, value
    for stop in dict.fromkeys(STOPS.values()) if "stop" in inspect.signature(cls).parameters else ():
        node = {"_target_": f"{stop.__module__}.{stop.__qualname__}"}
        with contextlib.suppress(ConfigError):  # one that this method does not take
            bench.create(stop=node).close()
            yield "stop", node


def _accepts(bench: Bench, name: str, changes: Mapping[str, object], value: object) -> str | None:
    """What is wrong with how the method, with these changes to its node, takes a wrong value; None where it refuses it."""
    with contextlib.ExitStack() as made:
        try:
            method = bench.create(**changes)
            method.rule_for(GREEDY)
            made.callback(method.close)
            method.open(bench.runtime(GREEDY))
        except ConfigError as error:
            return None if error.key == f"method.{name}" else f"{name}={value!r}: the error names {error.key}: {error}"
        except Exception as error:  # a wrong option must not look like a fault of the program
            return f"{name}={value!r}: {type(error).__name__}: {error}; raise ConfigError('method.{name}', ...)"
    return f"{name}={value!r} is accepted"


def closing(bench: Bench) -> Result:
    """`close` is safe before `open`, and twice; no process stays behind."""
    never_opened = bench.create()
    never_opened.close()
    never_opened.close()
    bench.method(GREEDY)
    method = bench.drop(GREEDY)
    assert method is not None
    pids = method.pids()
    method.close()
    method.close()
    multiprocessing.active_children()  # reaps what has ended
    left = [pid for pid in pids if _alive(pid)]
    return Result.of(f"processes left: {left}" if left else None, f"twice; {len(pids)} processes ended" if pids else "twice")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def label(bench: Bench) -> Result:
    """What it claims fits its rule: a lossy rule is called lossy, at every temperature, and so claims no ids."""
    for law in (GREEDY, SAMPLED):
        method = bench.method(law)
        rule, claim = method.rule_for(law), method.claim(law)
        if rule.claim == "lossy" and (claim != "lossy" or method.same_ids(law)):
            return Result.of(f"rule {rule.name} is lossy; the method claims {claim}", "")
        if claim not in ("greedy-exact", "sampling-exact", "lossy"):
            return Result.of(f"it claims {claim!r}; possible: greedy-exact, sampling-exact, lossy", "")
        if claim == "greedy-exact" and not law.greedy:
            return Result.of("it claims greedy-exact at a temperature", "")
    claims = [bench.method(law).claim(law) for law in (GREEDY, SAMPLED)]
    if "lossy" in claims:
        return Result(SKIP, "lossy: its output is not the target's, and no check can make it so")
    return Result.of(None, f"{claims[0]} at temperature 0, {claims[1]} above")

"""Finds what third parties ship and turns a method's YAML node into the method.

A plugin is a class and a YAML. A package offers its YAMLs through one entry point:

    [project.entry-points."specbench.conf"]
    my_method = "my_package.conf"

`my_package/conf/method/<name>.yaml` is then a choice of `method=`, and its `_target_` may name classes of `my_package`. Without
a package, `--config-dir DIR` adds a folder. A configuration names code to run: `_target_` may point into specbench and
installed plugins only, unless the user allows more, and what it names must be a `Method`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from specbench.config.options import ConfigError

if TYPE_CHECKING:
    pass

GROUP = "specbench.conf"
Part = TypeVar("Part")


def installed() -> list[EntryPoint]:
    """The entry points of all installed plugins, in a stable order."""
    return sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))


def allowed_prefixes(more: Sequence[str] = ()) -> tuple[str, ...]:
    """Where `_target_` may point: specbench, the packages of installed plugins, and what the user adds (`my_package`)."""
    packages = ["specbench", *(point.module.partition(".")[0] for point in installed()), *more]
    return tuple(dict.fromkeys(package.rstrip(".") + "." for package in packages))


def create_part(node: Mapping[str, Any], base: type[Part], more_prefixes: Sequence[str], key: str) -> Part:
    """The object that a node names, an instance of `base`; the same rules and errors as for methods."""
    cls = _load_class(node, base, more_prefixes, key)
    options = {name: value for name, value in node.items() if name != "_target_"}
    parameters = inspect.signature(cls).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    accepted = [name for name, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if "draft_length" not in accepted and options.get("draft_length") is None and not takes_any:
        options.pop("draft_length", None)  # declared for every method; null says that it does not apply
    for name, value in options.items():
        if name not in accepted and not takes_any:
            near = difflib.get_close_matches(name, accepted, n=1)
            hint = f"did you mean {key}.{near[0]}? " if near else ""
            listed = ", ".join(f"{key}.{a}" for a in accepted) or "none"
            raise ConfigError(f"{key}.{name}", value, f"{cls.__name__} takes no such option; {hint}possible: {listed}")
    missing = [a for a in accepted if parameters[a].default is inspect.Parameter.empty and a not in options]
    if missing:
        raise ConfigError(f"{key}.{missing[0]}", None, f"{cls.__name__} needs this option; write {key}.{missing[0]}=<value>")
    made = {name: _inner(value, more_prefixes, f"{key}.{name}") for name, value in options.items()}
    try:
        return cls(**made)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a plugin's constructor may raise anything; say whose it was
        why = f"{cls.__name__} cannot be made of these options: {type(error).__name__}: {error}"
        raise ConfigError(f"{key}._target_", node.get("_target_"), why) from error


def _inner(value: Any, more_prefixes: Sequence[str], key: str) -> Any:
    """An option that names a class itself is made first: its owner checks what it is."""
    is_node = isinstance(value, Mapping) and "_target_" in value
    return create_part(value, object, more_prefixes, key) if is_node else value


def named_part(key: str, value: object, base: type[Part], known: Mapping[str, Callable[[], Part]]) -> Part:
    """A part that an option means: its name, or an object that its node has become. Raises ConfigError naming `key`."""
    if isinstance(value, base):
        return value
    if not isinstance(value, str) or value not in known:
        raise ConfigError(key, value, f"possible: {', '.join(known)}, or a node that names a {base.__name__}")
    return known[value]()


def _load_class(node: Mapping[str, Any], base: type[Part], more_prefixes: Sequence[str], key: str) -> type[Part]:
    target = node.get("_target_") if isinstance(node, Mapping) else None
    name = f"{key}._target_"
    if not isinstance(target, str) or target.count(".") < 1:
        raise ConfigError(name, target, f"must name a class as package.module.Class; is the {key}'s YAML complete?")
    prefixes = allowed_prefixes(more_prefixes)
    if not target.startswith(prefixes):
        listed = ", ".join(prefix + "*" for prefix in prefixes)
        raise ConfigError(
            name, target, f"points outside what may run; possible: {listed} (allow_targets=[package] allows more)"
        )
    module_name, _, class_name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a plugin's code may raise anything while it is imported; say whose it was
        raise ConfigError(name, target, f"{module_name} fails to import: {type(error).__name__}: {error}") from error
    cls = getattr(module, class_name, None)
    # What an option's node names may be of any kind; so that it is not whatever a module happens to import, it is made here.
    own = base is not object or f"{getattr(cls, '__module__', '')}.".startswith(prefixes)
    if not (isinstance(cls, type) and issubclass(cls, base) and own):
        found = sorted(n for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, base) and c is not base)
        kind = "class of its own" if base is object else base.__name__
        raise ConfigError(name, target, f"is no {kind}; {module_name} has: {', '.join(found) or 'none'}")
    return cls

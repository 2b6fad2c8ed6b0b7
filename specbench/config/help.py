"""What `python -m specbench --help` says: the choices, and every option with its value and what it means.

The meanings are the comments above the schema's fields, and those behind the options in the YAML of a method, a plugin's too.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from specbench.config.compose import HYDRA_VERSION, register
from specbench.config.paths import CONF_DIR
from specbench.config.schema import DATA_FACTS, FILLED_IN, RunConfig

WIDTH = 120
_COLUMN = 38  # where meanings begin
_GROUPS = {  # configuration groups that are chosen by name
    "method": "how tokens are produced",
    "method@baseline": "what the method is compared with, on the same prompts",
    "pair": "target model, draft model, tokenizer",
    "data": "the prompts",
    "engine": "what computes the models' forwards",
    "launcher": "how the jobs of a sweep (-m) run",
    "track": "where finished numbers are mirrored to",
    "experiment": "a named sweep; it may set every option below",
}
_HEAD = """\
specbench measures speculative decoding: a method against a baseline, on the same prompts.

    python -m specbench method=amusd data=humaneval
    python -m specbench method=speculative method.draft_length=6 pair.target=<model> pair.draft=<model>
"""
_FOOT = """\
--cfg job shows the configuration without running it, -m sweeps over comma-separated values (launcher=isolated: each
job in a process of its own), --config-dir DIR adds a folder of your own YAML files, --version says the version.
--hydra-help shows what else Hydra offers. More: docs/options.md.
"""


def text(overrides: Sequence[str] = (), config_dir: str | None = None) -> str:
    """The page, with the options of the methods that the overrides choose. Raises Hydra's and OmegaConf's errors."""
    register()
    folder = [] if config_dir is None else [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"]
    with hydra.initialize_config_dir(str(CONF_DIR), job_name="specbench", version_base=HYDRA_VERSION):
        cfg = hydra.compose("config", overrides=[*overrides, *folder], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)  # method_name is an interpolation into Hydra's own node
        track = str(cfg.hydra.runtime.choices.get("track"))
        try:
            with open_dict(cfg):
                del cfg["hydra"]
            values: Any = OmegaConf.to_container(cfg, resolve=True)
        finally:
            HydraConfig.instance().cfg = None
        sources = GlobalHydra.instance().config_loader().get_sources()
    folders = [*([Path(config_dir)] if config_dir else []), *(Path(s.path) for s in sources if s.scheme() == "file")]
    open_nodes = {arm: _yaml_meanings(folders, "method", str(values[f"{arm}_name"])) for arm in ("method", "baseline")}
    open_nodes["track"] = _yaml_meanings(folders, "track", track)
    lines = [_HEAD, "Choices, written group=name:", ""]
    for group, about in _GROUPS.items():
        found = {path.stem for folder in folders for path in (folder / group).glob("[!_]*.yaml")}
        same = "the same names as method" if group == "method@baseline" else ", ".join(sorted(found))
        lines += _entry(group, f"{about}: {same}")
    lines += ["", "Options, written key=value, each with its value here:", ""]
    for key, value, meaning in _options(RunConfig, values, ""):
        if key not in open_nodes:
            lines += _entry(f"{key}={_shown(value)}", meaning)
            continue
        for name, own in (value or {}).items():
            lines += _entry(f"{key}.{name}={_shown(own)}", open_nodes[key].get(name, "")) if name != "_target_" else []
    return "\n".join([*lines, "", _FOOT])


def _options(section: Any, values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, str]]:
    """(key, value, meaning) of every option that a user may set."""
    meanings = comments(section)
    for part in dataclasses.fields(section):
        value, key = values.get(part.name), prefix + part.name
        inner = part.default_factory if part.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(inner):
            yield from _options(inner, value or {}, f"{key}.")
        elif not (prefix == "data." and part.name in DATA_FACTS) and part.name not in FILLED_IN:
            yield key, value, meanings.get(part.name, "")


def comments(section: Any) -> dict[str, str]:
    """The comment above each field of a dataclass."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in textwrap.dedent(inspect.getsource(section)).splitlines():
        field = re.match(r"    (\w+):", line)
        if field and above:
            found[field[1]] = " ".join(above)
        above = [*above, line.strip("# ")] if line.startswith("    #") else []
    return found


def _yaml_meanings(folders: Sequence[Path], group: str, name: str) -> dict[str, str]:
    """The comment behind each option of a choice's YAML, where that is found first."""
    found: dict[str, str] = {}
    for file in ("_base", name):
        path = next((path for folder in folders if (path := folder / group / f"{file}.yaml").is_file()), None)
        for line in [] if path is None else path.read_text(encoding="utf-8").splitlines():
            said = re.match(r"(\w+):.*?\s#\s*(.+)", line)
            if said:
                found[said[1]] = said[2]
    return found


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


def _entry(label: str, meaning: str) -> list[str]:
    lines = textwrap.wrap(meaning, WIDTH - _COLUMN, break_on_hyphens=False) or [""]
    head = f"  {label}"
    first = [head] if len(head) + 2 > _COLUMN else []
    lines = [f"{'' if first or number else head:<{_COLUMN}}{line}" for number, line in enumerate(lines)]
    return [line.rstrip() for line in (first + lines if meaning else [head])]

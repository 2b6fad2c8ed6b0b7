"""From a command line to a typed configuration; the one room here that knows hydra."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from specbench.config.create import installed
from specbench.config.default_pair import INSTEAD, NOTE, default_pair
from specbench.config.errors import refuse_numbers_for_flags, unknown
from specbench.config.options import ConfigError
from specbench.config.paths import CONF_DIR
from specbench.config.schema import RunConfig, validate

HYDRA_VERSION = "1.3"
PLUGIN_PACKAGE = "hydra_plugins.specbench"  # Hydra takes plugins from its own package only


@dataclass
class SweeperConf:
    _target_: str = f"{PLUGIN_PACKAGE}.SpecbenchSweeper"
    params: dict[str, str] | None = None
    jobs: list[list[str]] | None = None


@dataclass
class SerialConf:
    _target_: str = f"{PLUGIN_PACKAGE}.SerialLauncher"


@dataclass
class IsolatedConf:
    _target_: str = f"{PLUGIN_PACKAGE}.IsolatedLauncher"
    seed: int = 0  # of the order of the jobs


def compose(overrides: Sequence[str] = (), pair: str | None = None) -> RunConfig:
    """The configuration that a command line means, without running it: `compose(["method=speculative", "data.limit=5"])`.

    pair: the choice where the overrides make none; null: a run's. Raises ConfigError, Hydra's and OmegaConf's errors.
    """
    register()
    if pair is not None and not any(override.partition("=")[0].lstrip("+") == "pair" for override in overrides):
        overrides = [f"pair={pair}", *overrides]
    with hydra.initialize_config_dir(str(CONF_DIR), job_name="specbench", version_base=HYDRA_VERSION):
        cfg = hydra.compose("config", overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)  # method_name is an interpolation into Hydra's own node
    try:
        with open_dict(cfg):
            del cfg["hydra"]
        return to_run_config(cfg, overrides)
    finally:
        HydraConfig.instance().cfg = None


def register() -> None:
    """Make known to Hydra: `run_schema` (see conf/config.yaml), the plugins' configurations, and the options of the sweeper and
    the launchers (the classes behind them are `front.launchers`', which a run without a sweep never needs)."""
    _register_schemas()
    OmegaConf.register_new_resolver("default_pair", default_pair, replace=True)
    register_search_path()


@functools.cache
def _register_schemas() -> None:
    """Once a process: making nodes of dataclasses is an eighth of composing."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    store.store(group="hydra/sweeper", name="specbench", node=SweeperConf, provider="specbench")
    store.store(group="hydra/launcher", name="serial", node=SerialConf, provider="specbench")
    store.store(group="hydra/launcher", name="isolated", node=IsolatedConf, provider="specbench")


def to_run_config(cfg: DictConfig, overrides: Sequence[str] | None = None) -> RunConfig:
    """Plain, typed and range-checked dataclasses from a composed configuration (without its `hydra` node).

    `overrides`: what was typed, if not in a Hydra job. Raises ConfigError and OmegaConf's errors.
    """
    if overrides is None:
        overrides = HydraConfig.get().overrides.task
    for name in ("method", "baseline"):
        node = cfg.get(name)
        if not isinstance(node, DictConfig) or not node:
            choice = "method" if name == "method" else "method@baseline"
            raise ConfigError(name, None if isinstance(node, DictConfig) else node, f"is chosen by name: write {choice}=<name>")
    refuse_numbers_for_flags(overrides)
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, RunConfig)
    _refuse_appended(config, "")
    changed = {override.partition("=")[0].lstrip("+~") for override in overrides}
    if changed & {"pair.target", "pair.draft"} and "pair.name" not in changed:
        config.pair.name = pair_name(config.pair.target, config.pair.draft)  # no longer the pair that the file describes
    stands_in = HydraConfig.get().runtime.choices.get("pair") == INSTEAD and "pair.target" not in changed
    config.notes = [NOTE] if stands_in else []
    validate(config)
    return config


def pair_name(target: str, draft: str | None) -> str:
    """A pair that no file names, by its models: `Llama-3.1-8B + Llama-3.2-1B`; without what stands before the last slash."""
    return " + ".join(Path(model).name or model for model in (target, draft) if model)


def _refuse_appended(section: Any, prefix: str) -> None:
    """`+key=value` adds what the schema does not know; outside the open method nodes that is a typo, never an option."""
    declared = [field.name for field in dataclasses.fields(section)]
    for name, value in vars(section).items():
        if name not in declared:
            raise ValueError(unknown(prefix + name, str(value), [prefix + known for known in declared]))
        if dataclasses.is_dataclass(value):
            _refuse_appended(value, f"{prefix}{name}.")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Hydra's own command line, with its usage text replaced by one line."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{message}; options are written key=value, --help shows them all")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_args(arguments)


def conf_folder(point: EntryPoint) -> Path:
    """The configuration folder that a plugin offers. Raises ConfigError, with the plugin's name, if it has none."""
    try:
        spec = importlib.util.find_spec(point.module)
    except Exception as error:  # the plugin's own package failed to import: whatever it raised, it is named
        raise ConfigError("plugin", point.name, f"its package fails to import: {type(error).__name__}: {error}") from error
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders or not Path(folders[0]).is_dir():
        raise ConfigError(
            "plugin", point.name, f"its configuration folder {point.module} does not exist; reinstall or remove it"
        )
    return Path(folders[0])


def register_search_path() -> None:
    """Put every plugin's configuration folder on Hydra's search path, behind specbench's own."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    folders = [(point.name, conf_folder(point)) for point in installed()]

    class SpecbenchPlugins(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for name, folder in folders:
                search_path.append(provider=f"specbench plugin {name}", path=f"file://{folder}")

    Plugins.instance().register(SpecbenchPlugins)

"""Where heads lie: a folder, a `builtin:` part, a Hub repository; and whose heads they are (the target's hash)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from specbench.config.options import ConfigError
from specbench.config.paths import CONF_DIR, MODELS_DIR

if TYPE_CHECKING:
    from specbench.config.specs import ModelSpec

KEY = "method.heads"
BUILTIN = "builtin:"
BUILTIN_TARGET = "builtin:target"  # the target that the committed heads belong to
_HUB_FILES = ["*.json", "*.safetensors", "*.pt"]


def builtin_folder(family: str) -> Path:
    """Where the built-in pair's heads of a family stand, there or not."""
    return MODELS_DIR / "builtin" / f"heads_{family}"


def training_command(family: str) -> str:
    """How heads of a family are made: by the shipped method of its name, else by a plugin's, which its user knows."""
    shipped = (CONF_DIR / "method" / f"{family}.yaml").is_file()
    whose = f"method={family}" if shipped else "method=<as here> allow_targets=<as here>"
    return f"python -m specbench.train part=heads {whose} pair=<pair> train.out=<folder>, then {KEY}=<folder>"


def find_heads(family: str, name: str | None, target_name: str, key: str = KEY, command: str = "") -> Path:
    """The folder that an option means (`key`, by default `method.heads`); null: the built-in pair's own heads of the family.

    Raises ConfigError naming the option when there is nothing, with the command that trains them.
    """
    command = command or training_command(family)
    if name is None:
        folder = builtin_folder(family)
        if target_name == BUILTIN_TARGET and folder.is_dir():
            return folder
        missing = "the built-in pair has none" if target_name == BUILTIN_TARGET else f"{target_name} has none of its own"
        raise ConfigError(key, None, f"{missing}; train {family} heads: {command}")
    if not isinstance(name, str) or not name:
        raise ConfigError(key, name, "give a folder, builtin:<part> or a Hub repository")
    if name.startswith(BUILTIN):
        folder = MODELS_DIR / "builtin" / name.removeprefix(BUILTIN)
        if not folder.is_dir():
            found = sorted(BUILTIN + p.parent.name for p in (MODELS_DIR / "builtin").glob("*/heads.json"))
            raise ConfigError(key, name, f"possible: {', '.join(found) or 'none is there yet'}")
        return folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.count("/") != 1 or name.startswith((".", "~", "/")) or " " in name:
        raise ConfigError(key, name, f"no such folder; train {family} heads: {command}")
    return _from_hub(name, key)


def _from_hub(repository: str, key: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=_HUB_FILES))
    except Exception as error:  # the Hub raises its own, HTTP and OS errors; each only means that the files did not come
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(key, repository, f"no such folder, and not to be had from the Hub: {reason}") from error


def target_hash(spec: ModelSpec) -> str | None:
    """sha256 of the target's files, None for a model that has none on this machine."""
    from specbench.config.specs import local_folder
    from specbench.measure.records.provenance import model_hash

    try:
        folder = local_folder(spec)
    except ValueError:  # no repository name: a model made in memory
        return None
    return model_hash(folder) if folder is not None else None

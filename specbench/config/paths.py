"""Where the configuration, the data cards and the shipped models are, in a checkout and in a wheel (standard library only).

In a wheel `conf` and `datasets` lie inside the package; in a checkout, beside it. They are found by path and never imported:
a folder named `datasets` with an `__init__.py` would shadow Hugging Face's.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE_DIR = Path(__file__).resolve().parents[1]


def _inside_or_beside(name: str) -> Path:
    inside = PACKAGE_DIR / name
    return inside if inside.is_dir() else PACKAGE_DIR.parent / name


CONF_DIR = _inside_or_beside("conf")
DATASETS_DIR = _inside_or_beside("datasets")
MODELS_DIR = PACKAGE_DIR / "models"

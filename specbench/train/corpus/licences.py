"""Which installed packages may be trained on: a permissive licence, stated in the package's own metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

PERMISSIVE_IDS = frozenset(
    {"MIT", "MIT-CMU", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "Apache-2.0", "PSF-2.0", "Python-2.0", "ISC", "Zlib"}
    | {"CC0-1.0", "BSL-1.0", "LLVM-exception"}  # BSL-1.0 is the Boost licence
)
PERMISSIVE_CLASSIFIERS = (
    "MIT License",
    "BSD License",
    "Apache Software License",
    "Python Software Foundation License",
    "ISC License (ISCL)",
)
PERMISSIVE_WORDS = re.compile(
    r"(mit|isc|bsd|bsd-[23]-clause|[23]-clause bsd|psf|apache([ -]| license,? )?(version )?2\.0)( license)?", re.I
)


@dataclass(frozen=True)
class Package:
    """One installed distribution and the licence its metadata states."""

    name: str
    version: str
    licence: str


def stated_licence(meta: Any) -> str | None:
    """The licence in a distribution's metadata when it is permissive beyond doubt, else None.

    Order of belief: `License-Expression` (every identifier must be permissive), then licence classifiers (all of them), then
    a short `License` text.
    """
    expression = meta.get("License-Expression")
    if expression:
        identifiers = [w for w in re.split(r"[\s()]+", expression) if w and w not in ("AND", "OR", "WITH")]
        return expression if identifiers and all(w in PERMISSIVE_IDS for w in identifiers) else None
    classifiers = [c.split("::")[-1].strip() for c in meta.get_all("Classifier") or [] if c.startswith("License")]
    classifiers = [c for c in classifiers if c != "OSI Approved"]
    if classifiers:
        return "; ".join(classifiers) if all(c in PERMISSIVE_CLASSIFIERS for c in classifiers) else None
    text = (meta.get("License") or "").strip()
    return text if PERMISSIVE_WORDS.fullmatch(text) else None


def permissive_distributions() -> Iterator[tuple[Package, metadata.Distribution]]:
    """Installed distributions with a permissive licence, by name.

    Packages whose name speaks of evaluation are left out: they may carry the very texts that models are later judged by.
    """
    seen: set[str] = set()
    for dist in sorted(metadata.distributions(), key=lambda d: (d.metadata["Name"] or "").lower()):
        name = (dist.metadata["Name"] or "").lower()
        if not name or name in seen or "eval" in name or name == "specbench":
            continue
        seen.add(name)
        licence = stated_licence(dist.metadata)
        if licence is not None:
            yield Package(dist.metadata["Name"], dist.version, licence), dist

"""Energy counters of processors (Intel's RAPL, also on AMD) from the kernel's powercap files.

Counted are packages and their memory (`dram` is not part of `package`; `core`, `uncore` and `psys` would count twice). The
counters wrap at `max_energy_range_uj`, within minutes on a busy server, so they are read again and again and accumulated.
Since 2020 kernels let only root read them: that is the usual reason for null.
"""

from __future__ import annotations

import re
from pathlib import Path

SYSFS_ROOT = Path("/sys/class/powercap")


class RaplUnavailable(RuntimeError):
    """No counters, or not for this user; the text is the reason."""


def _read_integer(path: Path) -> int:
    try:
        return int(path.read_text())
    except PermissionError as error:
        raise RaplUnavailable(f"{path} may be read by root only") from error
    except (OSError, ValueError) as error:
        raise RaplUnavailable(f"{path} cannot be read: {error}") from error


class RaplDomain:
    """One counter, accumulated across wraps. Call `update` at least once per wrap."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.name = self._full_name(folder)
        self._range = _read_integer(folder / "max_energy_range_uj")
        self._last = _read_integer(folder / "energy_uj")
        self._total = 0

    @staticmethod
    def _full_name(folder: Path) -> str:
        name = (folder / "name").read_text().strip()
        if folder.name.count(":") < 2:
            return name
        parent = folder.parent / folder.name.rpartition(":")[0]
        return f"{(parent / 'name').read_text().strip()}/{name}" if (parent / "name").exists() else name

    def update(self) -> float:
        """Joules since this object was made. Raises RaplUnavailable."""
        now = _read_integer(self.folder / "energy_uj")
        step = now - self._last
        self._total += step if step >= 0 else step + self._range + 1  # the counter holds 0 to range
        self._last = now
        return self._total / 1e6


def domains(root: Path = SYSFS_ROOT) -> list[RaplDomain]:
    """Packages and their memory. Raises RaplUnavailable with the reason where there is nothing to read."""
    folders = sorted(path for path in root.glob("intel-rapl*:*") if re.fullmatch(r"intel-rapl(-mmio)?:\d+(:\d+)?", path.name))
    named = [(folder, (folder / "name").read_text().strip()) for folder in folders if (folder / "name").exists()]
    chosen = [folder for folder, name in named if name.startswith("package") or name == "dram"]
    plain = [folder for folder in chosen if "-mmio" not in folder.name] or chosen  # the same counters by another way
    if not plain:
        raise RaplUnavailable(f"no RAPL counters below {root}")
    return [RaplDomain(folder) for folder in plain]

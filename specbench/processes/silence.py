"""When another process counts as hung: silence, measured fairly, and signs of life where no word can be expected."""

from __future__ import annotations

from pathlib import Path

from specbench.measure.sensors.clock import now

NOTICED_SECONDS = 1.0  # of the time since the last look, at most so much counts


class Silence:
    """Seconds without news, of the time that this process was awake.

    One that was stopped for a while and goes on (a batch system does that, and Ctrl-Z) has not listened: it accuses nobody.
    """

    def __init__(self, limit_seconds: float):
        self.limit_seconds = limit_seconds
        self.broken()

    def broken(self) -> None:
        """There was news."""
        self.seconds, self._looked = 0.0, now()

    def too_long(self) -> bool:
        """Ask this often: between two questions at most NOTICED_SECONDS count."""
        time = now()
        self.seconds += min(time - self._looked, NOTICED_SECONDS)
        self._looked = time
        return self.seconds > self.limit_seconds


def signs_of_life(pid: int | None) -> str | None:
    """A text that changes while a process computes, reads, writes or touches new memory; None where the system does not say.

    It is looked at from outside because nothing inside is reliable: a thread that reports for the others goes on when they
    hang, and is silent while a library loads for minutes without letting it run.
    """
    folder = Path(f"/proc/{pid}")
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    faults, cpu = fields[7:11], fields[11:13]  # minor and major page faults; user and system time
    try:
        files = (folder / "io").read_text()
    except OSError:  # not every kernel counts it
        files = ""
    return " ".join([*faults, *cpu, files])

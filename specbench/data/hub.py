"""One set from the Hugging Face Hub: cache, then one short probe, then the download; its rows by Hugging Face's `datasets`.

The Hub's own retries make an unreachable network cost tens of seconds a file; the probe bounds that. The file comes first and
`datasets.load_dataset` is pointed at the Hub's cache: so the bytes that the rows were read from have a checksum and a commit.
"""

from __future__ import annotations

import os
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench.config.schema import DataConfig

PROBE_SECONDS = 3.0
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


class HubUnavailable(Exception):
    """The set did not come, or is not what its name says; the text says why, in one line."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file in the Hub's cache and the commit it belongs to (None if the cache does not tell)."""

    path: Path
    revision: str | None

    def rows(self, name: str) -> list[dict[str, Any]]:
        """What the file, `name` in its repository, holds, read by `datasets`. Raises HubUnavailable where it cannot."""
        from datasets import load_dataset

        snapshot = self.path.parents[len(Path(name).parts) - 1]
        try:  # no checks: a repository's card counts the rows of all its files; sums are compared in `load`
            table = load_dataset(str(snapshot), data_files=name, split="train", verification_mode="no_checks")
        except Exception as error:  # its own, pyarrow's and OS errors; each only means that these are no rows
            raise HubUnavailable(f"{name} cannot be read: {_first_line(error.__cause__ or error)}") from error
        rows: list[dict[str, Any]] = table.to_list()
        return rows


def offline() -> str | None:
    """The environment variable that forbids asking the Hub, or None."""
    return next((name for name in OFFLINE_VARIABLES if os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}), None)


def fetch(config: DataConfig) -> HubFile:
    """The configured Hub file, at the configured revision. Raises HubUnavailable with the reason.

    A file already in the Hub's cache is taken without any network. Otherwise one request of at most 3 s, announced on stderr,
    decides whether the download is tried at all; an offline variable skips both.
    """
    import huggingface_hub

    if not config.hub_repo or not config.hub_file:
        raise HubUnavailable(f"no Hub repository is configured for {config.name}; see datasets/{config.name}.md for the source")
    repo, file, revision = config.hub_repo, config.hub_file, config.hub_revision
    cached = huggingface_hub.try_to_load_from_cache(repo, file, revision=revision, repo_type="dataset")
    if isinstance(cached, str):
        return HubFile(Path(cached), _commit(Path(cached)))
    variable = offline()
    if variable is not None:
        raise HubUnavailable(f"{variable} is set and {repo} is not in the Hub's cache")
    endpoint = huggingface_hub.constants.ENDPOINT
    print(f"data: asking {endpoint} for {repo} (at most {PROBE_SECONDS:g} s)", file=sys.stderr, flush=True)
    reason = probe(f"{endpoint}/api/datasets/{repo}", PROBE_SECONDS)
    if reason is not None:
        raise HubUnavailable(f"{endpoint} did not answer: {reason}")
    try:
        download = huggingface_hub.hf_hub_download
        path = Path(download(repo, file, revision=revision, repo_type="dataset", etag_timeout=PROBE_SECONDS))
    except Exception as error:  # the Hub raises its own, HTTP and OS errors; each only means that the file did not come
        raise HubUnavailable(f"{repo}: {_first_line(error)}") from error
    return HubFile(path, _commit(path))


def probe(url: str, timeout_seconds: float) -> str | None:
    """None if the server at `url` answers anything within the time, else why not.

    The request runs in a daemon thread: name resolution ignores socket timeouts and may hang much longer.
    """
    outcome: list[str | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout_seconds):
                outcome.append(None)
        except urllib.error.HTTPError as error:  # an answer: the download will say what is wrong, unless a proxy refuses
            outcome.append(f"HTTP status {error.code}" if error.code in {407, 502, 503, 504} else None)
        except (OSError, ValueError) as error:
            outcome.append(str(error) or type(error).__name__)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    return outcome[0] if outcome else f"nothing within {timeout_seconds:g} s"


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300] if text else 'no reason given'}"


def _commit(path: Path) -> str | None:
    """The commit in a cache path `.../snapshots/<commit>/<file>`."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None

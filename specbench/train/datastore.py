"""A datastore of the corpus in the target's ids: `python -m specbench.train part=datastore pair=... train.out=...`.

No model is trained: the train split of the corpus (as for every part: without evaluation texts), at most `tokens` of it, stream
by stream in the shares that `train.shares` gives, and its suffix array.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from specbench.config.options import ConfigError
from specbench.pair.spec import resolve_path
from specbench.parts.drafts.datastore import Datastore
from specbench.train.common import encoded_corpus, load_tokenizer
from specbench.train.settings import Settings
from specbench.train.tokens import load_streams


def build_datastore(settings: Settings) -> dict[str, Any]:
    """Returns the facts that stand in its datastore.json too. Raises ConfigError without `train.out` or an end of text."""
    options, part, pair = settings.train, settings.chosen(), settings.pair
    if options.out is None:
        raise ConfigError("train.out", None, "name the folder of the datastore")
    tokenizer = load_tokenizer(pair)
    if tokenizer.eos_token_id is None:
        raise ConfigError("pair.target", pair.target, "its tokenizer names no end-of-text token, which keeps documents apart")
    folder, _ = encoded_corpus(options, tokenizer, tokenizer.eos_token_id)
    total = sum(options.shares.values())
    pieces = [
        array[: int(part.tokens * options.shares.get(stream, 0.0) / total)]
        for stream, array in load_streams(folder, "train").items()
    ]
    config = AutoConfig.from_pretrained(
        resolve_path(pair.target), revision=pair.target_revision, trust_remote_code=pair.trust_remote_code
    )
    vocab_size = int(config.get_text_config().vocab_size)
    end_id = int(tokenizer.eos_token_id)
    closed = [np.append(piece, end_id) for piece in pieces if len(piece)]
    if not closed:
        raise ConfigError("train.source", options.source, "no text in the streams that train.shares names")
    store = Datastore.build(np.concatenate(closed), end_id, vocab_size)
    manifest = json.loads((folder / "manifest.json").read_text())
    facts = {
        "part": settings.part,
        "tokenizer": pair.target,
        "source": options.source,
        "packages": manifest["packages"],
        "removed_for_overlap": len(manifest["removed_for_overlap"]),
        "evaluation_files": manifest["evaluation_files"],
    }
    store.save(Path(options.out), facts)
    return {**facts, "packages": len(facts["packages"]), "num_tokens": len(store.tokens), "folder": options.out}

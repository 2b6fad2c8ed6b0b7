"""`python -m specbench.train part=... pair=...`: makes the models that a pair needs (conf/train.yaml lists the options)."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tokenizers import Tokenizer

from specbench.schema import ConfigError
from specbench.training.loop import Schedule, compiled, train
from specbench.training.prepare import prepare
from specbench.training.settings import PartSettings, Settings, TrainSettings, settings_from
from specbench.training.target import heldout_loss, new_llama, next_token_loss, save_model
from specbench.training.tokenizer import save_tokenizer
from specbench.training.tokens import PackedBatches, load_streams

BUILTIN_FOLDER = Path(__file__).resolve().parent / "models" / "builtin"
CONF_FOLDER = next(p for p in (Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf") if p.is_dir()).resolve()


def schedule_of(settings: TrainSettings, part: PartSettings) -> Schedule:
    """The training loop's schedule of a part."""
    return Schedule(
        tokens=part.tokens,
        rows=settings.rows,
        length=settings.length,
        long_share=settings.long_share,
        matrix_lr=settings.matrix_lr,
        other_lr=settings.other_lr,
        decay=settings.decay,
    )


def train_target(settings: Settings) -> dict[str, Any]:
    """Corpus, tokenizer, language model; returns the facts for the card."""
    options, part = settings.train, settings.chosen()
    folder, manifest = prepare(options, None, 0, "corpus")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = new_llama(options, part.layers, manifest["vocab_size"])
    batches = PackedBatches(load_streams(folder, "train"), options.shares, options.seed)
    loss = compiled(partial(next_token_loss, model, autocast=options.autocast), options.compile)
    checkpoint = Path(options.work) / settings.part / "checkpoint.pt"
    history, complete = train(model, loss, batches, schedule_of(options, part), checkpoint, options.resume, settings.part)
    out = output_folder(settings, part)
    if complete:
        save_model(model, out)
        save_tokenizer(tokenizer, out, options.max_positions)
    heldout = {name: torch.from_numpy(a.astype(np.int64)) for name, a in load_streams(folder, "heldout").items()}
    return {
        "part": settings.part,
        "complete": complete,
        "parameters": sum(p.numel() for p in model.parameters()),
        "history": vars(history),
        "heldout_loss": heldout_loss(model, heldout, options.length),
        "corpus": manifest["tokens"],
    }


def output_folder(settings: Settings, part: PartSettings) -> Path:
    """`train.out`, or the part's place in the built-in pair. Raises ConfigError when another pair would overwrite that."""
    if settings.train.out:
        return Path(settings.train.out)
    if not settings.pair.target.startswith("builtin:"):
        raise ConfigError("train.out", None, f"name a folder for the trained part of pair {settings.pair.target}")
    return BUILTIN_FOLDER / part.folder


def run(settings: Settings) -> dict[str, Any]:
    """Run one training command."""
    torch.set_num_threads(settings.train.threads)
    kind = settings.chosen().kind
    if kind == "target":
        return train_target(settings)
    raise ConfigError("part", settings.part, "unknown kind")


@hydra.main(version_base="1.3", config_path=str(CONF_FOLDER), config_name="train")
def main(config: DictConfig) -> None:
    """Command line entry; the last line of stdout is a JSON document."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    try:
        result = run(settings_from({str(key): value for key, value in plain.items()}))
    except ConfigError as error:
        sys.exit(f"specbench.train: {error}")
    report = Path(config.train.work) / config.part / "report.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

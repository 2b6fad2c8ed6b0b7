"""Models of a published size with weights of our own making: any scale and any acceptance, and nothing to download.

`shaped:8b` has the layers, widths and vocabulary of Llama 3.1 8B, so its forwards take what that model's take; what it says is
known beforehand. Its LM head holds, as the row of token p(x), the embedding of token x, where p leads around all tokens of the
tokenizer in one circle; the layers compute in full, but add a thousandth to the residual stream. So x is followed by p(x), by
a margin that no rounding crosses, in any precision and in any company of rows. `shaped:1b:0.8` follows the same circle behind
four tokens of five, drawn once, and behind the others names another token first: as the draft of a pair it is accepted with a
probability of 0.8 per position, in greedy decoding, whatever the backend and the method. Behind half of the others the right
token stands second, for trees to find. Prompts that end alike are continued alike, and acceptance is
that of the stretch of the circle that was walked.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specbench.config.options import ConfigError
from specbench.config.paths import MODELS_DIR
from specbench.measure.records.provenance import cache_folder

if TYPE_CHECKING:
    from specbench.config.specs import ModelSpec

SHAPED = "shaped:"
# hidden size, layers, heads, key-value heads, MLP width, vocabulary. 8b: Llama 3.1 (arXiv 2407.21783, table 3); 1b, 3b: the
# configurations of Llama 3.2. Their LM heads are tied to the embedding, ours are not: the same bytes are read per token.
SIZES: dict[str, tuple[int, int, int, int, int, int]] = {
    "8b": (4096, 32, 32, 8, 14336, 128256),
    "3b": (3072, 28, 24, 8, 8192, 128256),
    "1b": (2048, 16, 32, 8, 8192, 128256),
    "tiny": (128, 3, 4, 2, 256, 4096),
}
RIGHT_SECOND = 0.5  # of the tokens behind which a draft is wrong: how many have the right token as the second best
LOGIT = 20.0  # of the token that is named first; the others stand near 0
RESIDUAL = 1e-3  # what a layer's two branches add, in units of the stream
_SEED, _RECIPE = 20260301, 1


def parse(name: str, role: str) -> tuple[str, float]:
    """Size and acceptance of `shaped:<size>[:<acceptance>]`. Raises ConfigError naming pair.<role>."""
    size, _, share = name.removeprefix(SHAPED).partition(":")
    remedy = f"possible: {', '.join(SHAPED + s for s in SIZES)}, with an acceptance from 0 to 1 behind it, as {SHAPED}1b:0.8"
    if size not in SIZES:
        raise ConfigError(f"pair.{role}", name, remedy)
    try:
        acceptance = float(share or 1.0)
    except ValueError:
        raise ConfigError(f"pair.{role}", name, remedy) from None
    if not 0.0 <= acceptance <= 1.0:
        raise ConfigError(f"pair.{role}", name, remedy)
    return size, acceptance


def shaped_folder(name: str, role: str) -> str:
    """A folder of the user's cache with the model's configuration and the built-in tokenizer, and no weights."""
    from transformers import LlamaConfig

    size, acceptance = parse(name, role)
    folder = cache_folder() / "models" / f"shaped-{size}-{acceptance:g}-{_RECIPE}"
    if not (folder / "config.json").is_file():
        hidden, layers, heads, kv_heads, width, vocabulary = SIZES[size]
        config = LlamaConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=width,
            vocab_size=vocabulary,
            max_position_embeddings=32768,
            tie_word_embeddings=False,
            architectures=["LlamaForCausalLM"],
            bos_token_id=None,
            eos_token_id=None,
        )
        entries = {**config.to_dict(), "specbench_shaped": {"size": size, "acceptance": acceptance, "recipe": _RECIPE}}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(MODELS_DIR / "builtin" / "target" / file, folder / file)
            beside = folder / "config.json.part"  # whole or not at all: it is what says that the folder is there
            beside.write_text(json.dumps(entries, indent=1, default=str), encoding="utf-8")
            beside.replace(folder / "config.json")
        except OSError as error:
            remedy = f"cannot be written to {folder}: {error.strerror or error}; set XDG_CACHE_HOME"
            raise ConfigError(f"pair.{role}", name, remedy) from error
    return str(folder)


def circle(num_tokens: int, special: frozenset[int]) -> np.ndarray:
    """p: int64 [num_tokens], the successor of every id. Ordinary ids form one circle; a special one leads to its first id."""
    ordinary = np.array([i for i in range(num_tokens) if i not in special])
    order = np.random.default_rng(_SEED).permutation(ordinary)
    follows = np.full(num_tokens, order[0])
    follows[order] = np.roll(order, -1)
    return follows


def named_first(follows: np.ndarray, acceptance: float) -> tuple[np.ndarray, np.ndarray]:
    """What a model names behind every id, int64 [n], and behind which of those wrong ones the right token is second, int64 [m].

    Wrong is round((1 - acceptance) x n) times, drawn once; it names the token after the right one.
    """
    wrong = np.random.default_rng(_SEED + 1).permutation(len(follows))[: round((1.0 - acceptance) * len(follows))]
    named = follows.copy()
    named[wrong] = follows[follows[wrong]]
    return named, wrong[: round(RIGHT_SECOND * len(wrong))]


def build(spec: ModelSpec) -> Any:
    """The module, made where it will run. Raises ConfigError where the device has no room for it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config, tokenizer = AutoConfig.from_pretrained(spec.path), AutoTokenizer.from_pretrained(spec.path)
    dtype, device = getattr(torch, spec.dtype), torch.device(spec.device)
    try:
        with device:
            module = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=spec.attention)
        chance = torch.Generator(device).manual_seed(_SEED)
        with torch.no_grad():
            for name, weights in module.named_parameters():
                if weights.dim() < 2:
                    continue  # norms, which start at 1
                scale = 1.0 if "embed_tokens" in name else weights.shape[1] ** -0.5
                weights.normal_(
                    0.0, RESIDUAL * scale if name.endswith(("o_proj.weight", "down_proj.weight")) else scale, generator=chance
                )
            follows = circle(len(tokenizer), frozenset(tokenizer.all_special_ids))
            named, second = named_first(follows, config.specbench_shaped["acceptance"])
            embedding, head = module.get_input_embeddings().weight, module.get_output_embeddings().weight
            rows = torch.zeros(len(follows), config.hidden_size, device=device)  # a sum: two ids may lead to one token
            known = embedding[: len(follows)].float() * (LOGIT / config.hidden_size)
            rows.index_add_(0, torch.as_tensor(named, device=device), known)
            if len(second):
                behind = torch.as_tensor(second, device=device)
                rows.index_add_(0, torch.as_tensor(follows[second], device=device), known[behind] / 2)
            head[: len(follows)] = rows.to(dtype)
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"pair.{spec.role}", spec.name, f"does not fit on {spec.device}: {str(error)[:200]}") from error
    return module


def is_shaped(spec: ModelSpec) -> bool:
    """Whether the weights are made here."""
    return spec.name.startswith(SHAPED) and Path(spec.path).is_dir()

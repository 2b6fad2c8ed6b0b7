"""Distilling a draft: its distribution is pulled to the target's, mostly on text that the target itself writes.

A draft is asked about the target's text, not about a corpus, so that is what it should see: sequence-level distillation with
the full distribution (Kim and Rush 2016; DistillSpec, Zhou et al. 2024, "on-policy" data from the target).
"""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from specbench.config.options import ConfigError
from specbench.train.generate import continuations, mask_after_end
from specbench.train.settings import SHORTEST_PROMPT, PartSettings, TrainSettings
from specbench.train.target import device_of
from specbench.train.tokens import PackedBatches

PROMPT_START = re.compile(r"^(?:def |class |from |import |@|[A-Z][a-z]+ )", re.M)
PROMPT_LENGTHS = (SHORTEST_PROMPT, 64, 96, 128, 160, 192)


def draft_from_layers(target: Any, layers: int, chosen: list[int] | None) -> nn.Module:
    """A model of the target's shape with fewer layers, its embeddings, norm and chosen layers copied from the target.

    `chosen`: which layers; None spreads them evenly from the first to the last. Raises ConfigError when they do not fit.
    """
    config = copy.deepcopy(target.config)
    depth = config.num_hidden_layers
    chosen = chosen if chosen is not None else [round(i) for i in np.linspace(0, depth - 1, layers)]
    if len(chosen) != layers or not all(0 <= layer < depth for layer in chosen):
        raise ConfigError("copy_layers", chosen, f"name {layers} layers between 0 and {depth - 1}")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in chosen]
    draft = AutoModelForCausalLM.from_config(config).float()
    state = {}
    for name, value in target.state_dict().items():
        found = re.match(r"(.*\blayers\.)(\d+)(\..*)", name)
        if found is None:
            state[name] = value
            continue
        for place, layer in enumerate(chosen):
            if int(found[2]) == layer:
                state[f"{found[1]}{place}{found[3]}"] = value
    draft.load_state_dict(state)
    return draft


def final_hidden(model: nn.Module, ids: Tensor, autocast: bool) -> Tensor:
    """The LM head's input, (rows, length, width); ids (rows, length) without gaps."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
        return model(input_ids=ids, use_cache=False, output_hidden_states=True, logits_to_keep=1).hidden_states[-1]


def check_head(target: nn.Module) -> None:
    """Raise ValueError for a target whose logits are more than its output embedding applied to the last hidden state."""
    ids = torch.arange(8, device=device_of(target))[None]
    with torch.no_grad():
        logits = target(input_ids=ids, use_cache=False).logits
        again = head_of(target)(final_hidden(target, ids, False))
    if not torch.allclose(logits, again, atol=1e-3):
        raise ValueError(f"{type(target).__name__} scales or caps its logits: distillation from it is not supported")


def head_of(model: Any) -> nn.Module:
    """The module that turns last hidden states into logits."""
    head: nn.Module = model.get_output_embeddings()
    return head


def distillation_loss(
    draft: nn.Module, target_head: nn.Module, ids: Tensor, hidden: Tensor, judged: Tensor | None = None, autocast: bool = False
) -> Tensor:
    """Mean KL(target || draft) in nats per position.

    ids (rows, length), -1 where there is no text; hidden (rows, length, width): the target's last hidden states there.
    judged: bool (rows, length), the positions that count; None: those with text.
    """
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
        with torch.no_grad():
            wanted = target_head(hidden.bfloat16() if autocast else hidden.float())
        given = draft(input_ids=ids.clamp(min=0), use_cache=False).logits
    shared = min(wanted.shape[-1], given.shape[-1])
    log_p = wanted[..., :shared].float().log_softmax(-1)
    log_q = given[..., :shared].float().log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    weight = (ids >= 0 if judged is None else judged).float()
    return (divergence * weight).sum() / weight.sum()


def prompt_texts(folder: Path, limit: int = 4_000) -> list[str]:
    """Beginnings of functions, classes and paragraphs in the corpus's `prompts` split, up to `limit` characters each."""
    texts: list[str] = []
    with open(folder / "prompts.jsonl", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if record["stream"] == "code":
                continue  # its functions are in the stream of functions already
            starts = [m.start() for m in PROMPT_START.finditer(record["text"])]
            texts.extend(record["text"][start : start + limit] for start in starts)
    return texts


class OwnTextBatches:
    """Batches for distillation: the target's own continuations mixed with corpus text, and the target's hidden states on both.

    A pool of rows is refilled as training goes: each row is used about `reuse` times before it leaves. The target runs once
    over a row when it enters; its last hidden state, times its LM head, is its distribution at every later use.
    store: a folder where blocks of own text are kept, so that the parts of one target write them once. It belongs to one
    target, one length and one seed: the caller names it so.
    """

    def __init__(
        self,
        target: nn.Module,
        prompts: list[list[int]],
        corpus: PackedBatches,
        options: TrainSettings,
        part: PartSettings,
        eos_ids: list[int],
        autocast: bool,
        store: Path,
    ):
        self.target, self.prompts, self.corpus, self.eos_ids, self.autocast = target, prompts, corpus, eos_ids, autocast
        self.own_text, self.length, self.temperatures = part.own_text, part.length or options.length, options.temperatures
        self.generate_rows, self.pool_rows, self.reuse = options.generate_rows, options.pool_rows, options.reuse
        self.seed, self.step, self.generated, self.used = options.seed, 0, 0, 0
        self.device, self.store = device_of(target), store
        self.pool = torch.zeros(0, self.length, dtype=torch.int64, device=self.device)
        self.hidden = torch.zeros(0, device=self.device)
        self.lengths = [n for n in PROMPT_LENGTHS if n <= self.length // 2 and any(len(p) >= n for p in prompts)]
        if self.own_text > 0 and not self.lengths:
            remedy = f"no prompt of at least {SHORTEST_PROMPT} tokens fits in half of it"
            raise ConfigError("train.length", self.length, remedy)

    def next(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Ids, int64 (rows, length), -1 after the end of a continuation; hidden states, bfloat16 (rows, length, width)."""
        assert length == self.length
        draw = np.random.default_rng([self.seed, 7, self.step])
        self.step += 1
        while len(self.pool) < min(self.pool_rows, 2 * self.generate_rows) or self.used > self.reuse * self.generated:
            self._refill()
        chosen = torch.from_numpy(draw.integers(0, len(self.pool), rows)).to(self.device)
        self.used += rows
        return self.pool[chosen], self.hidden[chosen]

    def _own_rows(self, own: int) -> Tensor:
        """The next `own` rows of the target's own text, int64 (own, length): from the store, or written now (and stored)."""
        file = self.store / f"{own}-rows-{self.generated}.npy"
        if file.exists():
            return torch.from_numpy(np.load(file)).to(self.device)
        draw = np.random.default_rng([self.seed, 8, self.generated])
        size = int(draw.choice(self.lengths))
        usable = [p for p in self.prompts if len(p) >= size]
        prompts = torch.tensor([usable[i][:size] for i in draw.integers(0, len(usable), own)], device=self.device)
        temperatures = torch.from_numpy(draw.choice(self.temperatures, own)).float().to(self.device)
        generator = torch.Generator(self.device).manual_seed(int(draw.integers(0, 2**62)))
        rows = mask_after_end(
            continuations(self.target, prompts, self.length - size, temperatures, generator), size, self.eos_ids
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")  # two parts may be trained at once
        with open(part, "wb") as out:
            np.save(out, rows.cpu().numpy())
        os.replace(part, file)
        return rows

    @torch.no_grad()
    def _refill(self) -> None:
        own = round(self.own_text * self.generate_rows)
        parts = [self._own_rows(own)] if own else []
        if own < self.generate_rows:
            parts.append(self.corpus.next(self.generate_rows - own, self.length).to(self.device))
        ids = torch.cat(parts)
        hidden = [final_hidden(self.target, chunk.clamp(min=0), self.autocast).bfloat16() for chunk in ids.split(16)]
        self.pool = torch.cat([self.pool, ids])[-self.pool_rows :]
        self.hidden = torch.cat([self.hidden, *hidden] if len(self.hidden) else hidden)[-self.pool_rows :]
        self.generated += self.generate_rows

    def state_dict(self) -> dict[str, Any]:
        """The position, with the pool."""
        names = ("step", "generated", "used", "pool", "hidden")
        return {name: getattr(self, name) for name in names} | {"corpus": self.corpus.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a position that `state_dict` gave."""
        for name in ("step", "generated", "used", "pool", "hidden"):
            setattr(self, name, state[name])
        self.corpus.load_state_dict(state["corpus"])

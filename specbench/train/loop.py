"""The training loop: budget in tokens, progress bar, checkpoints, exact resumption."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from specbench.pair.spec import resolve_device
from specbench.train.optim import learning_rate_factor, make_optimizers


@dataclass
class Schedule:
    """How long and how fast: budget in tokens, rows per step, learning rates, shares of warm-up and decay."""

    tokens: int
    rows: int = 16
    length: int = 512
    long_share: float = 0.0  # the last share of the budget runs on sequences four times as long, fewer rows
    matrix_lr: float = 0.02
    other_lr: float = 0.003
    warmup: float = 0.02
    decay: float = 0.35
    optimizer: str = "muon"  # see `optim.make_optimizers`
    shape: str = "plateau"  # plateau (then a linear decay) or cosine (from the warm-up's end to zero)
    checkpoint_seconds: float = 300.0  # process time between checkpoints


@dataclass
class History:
    """What a run leaves behind for the card."""

    tokens_seen: int = 0
    step: int = 0
    train_loss: float | None = None  # exponential average over the last steps, nats per token
    curve: list[tuple[int, float]] = field(default_factory=list)  # (tokens seen, average training loss)


class BatchSource(Protocol):
    """Where batches come from; must be able to continue at an exact position."""

    def next(self, rows: int, length: int) -> Tensor | tuple[Tensor, ...]:
        """Ids, int64 (rows, length), and what else the loss takes."""

    def state_dict(self) -> dict[str, Any]:
        """The position."""

    def load_state_dict(self, state: Any) -> None:
        """Continue at a position."""


LossFunction = Callable[..., Tensor]


def train(
    model: nn.Module,
    loss_function: LossFunction,
    batches: BatchSource,
    schedule: Schedule,
    checkpoint: Path,
    resume: bool,
    description: str,
) -> tuple[History, bool]:
    """Train until the budget is spent, or until SIGTERM or Ctrl-C; returns the history and whether the budget was spent.

    Progress is counted in tokens, so a paused process loses nothing, and the same seed gives the same weights whether or not
    the run was interrupted. A checkpoint holds weights, optimiser states, data position and history.
    """
    optimizers = make_optimizers(model, schedule.matrix_lr, schedule.other_lr, schedule.optimizer)
    base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    history = History()
    device = next(model.parameters()).device
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        batches.load_state_dict(state["batches"])
        history = History(**state["history"])
    stop: list[int] = []
    previous = {s: signal.signal(s, lambda number, frame: stop.append(number)) for s in (signal.SIGTERM, signal.SIGINT)}
    bar = tqdm(total=schedule.tokens, initial=history.tokens_seen, unit="tok", unit_scale=True, desc=description, mininterval=5)
    saved_at = time.process_time()
    model.train()
    try:
        while history.tokens_seen < schedule.tokens and not stop:
            progress = history.tokens_seen / schedule.tokens
            factor = learning_rate_factor(progress, schedule.warmup, schedule.decay, schedule.shape)
            for optimizer, rates in zip(optimizers, base_rates, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            stretch = 4 if progress >= 1 - schedule.long_share else 1
            batch = batches.next(max(schedule.rows // stretch, 1), schedule.length * stretch)
            batch = batch if isinstance(batch, tuple) else (batch,)
            loss = loss_function(*(tensor.to(device, non_blocking=True) for tensor in batch))
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            _note(history, float(loss.detach()), batch[0].numel())
            bar.update(batch[0].numel())
            bar.set_postfix_str(f"loss {history.train_loss:.3f} lr x{factor:.2f}", refresh=False)
            if time.process_time() - saved_at > schedule.checkpoint_seconds:
                _save(checkpoint, model, optimizers, batches, history)
                saved_at = time.process_time()
    finally:
        bar.close()
        for number, handler in previous.items():
            signal.signal(number, handler)
    _save(checkpoint, model, optimizers, batches, history)
    model.eval()
    return history, history.tokens_seen >= schedule.tokens


def _note(history: History, loss: float, tokens: int) -> None:
    if not loss < float("inf"):
        raise FloatingPointError(f"the loss became {loss} after {history.tokens_seen} tokens; lower train.matrix_lr")
    average = loss if history.train_loss is None else 0.98 * history.train_loss + 0.02 * loss
    history.train_loss, history.step = average, history.step + 1
    history.tokens_seen += tokens
    if history.step % 50 == 0:
        history.curve.append((history.tokens_seen, round(average, 4)))


def _save(
    path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], batches: BatchSource, history: History
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "batches": batches.state_dict(),
        "history": vars(history),
    }
    torch.save(state, part)
    os.replace(part, path)


def choose_device(name: str) -> torch.device:
    """`train.device`: auto takes CUDA where there is one. Raises ConfigError for a device that is not there."""
    return torch.device(resolve_device(name, "target", "train.device"))


def use_autocast(choice: bool | str, device: torch.device) -> bool:
    """`train.autocast`: whether products are taken in bfloat16. auto: on CUDA, and on a CPU that has instructions for them.

    A CPU without them emulates bfloat16: a product of 0.14 s in float32 took 9 s on one with AVX2 only.
    Raises ValueError for another choice.
    """
    if choice not in (True, False, "auto"):
        raise ValueError(f"train.autocast={choice!r}: choose auto, true or false")
    if choice != "auto":
        return bool(choice)
    ask = getattr(torch.cpu, "get_capabilities", None)  # not in every torch that pyproject.toml allows
    able: Mapping[str, Any] = ask() if ask is not None else {}
    return device.type == "cuda" or bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))


def compiled(function: LossFunction, model: nn.Module, choice: str) -> LossFunction:
    """The loss `function` of `model`, compiled when `choice` is on, or auto and a C++ compiler is present.

    On a CPU the whole function is compiled (twice as fast). On CUDA the decoder layers are, in place: they share one code, so
    that a deep model compiles in the time of one layer, and the rest is a few large products.
    """
    if choice not in ("auto", "on", "off"):
        raise ValueError(f"train.compile={choice!r}: choose auto, on or off")
    if not (choice == "on" or (choice == "auto" and shutil.which("g++") is not None)):
        return function
    if next(model.parameters()).device.type == "cpu":
        return torch.compile(function, dynamic=False)
    for layer in model.get_decoder().layers:  # type: ignore[operator]
        layer.compile(dynamic=False)
    return function

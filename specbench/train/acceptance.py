"""Training SpecDec++'s acceptance head (Huang et al. 2405.19715, section 4): `python -m specbench.train part=acceptance_head`.

The draft reads the target's own text in which tokens were exchanged for its own proposals, 85 in 100 (the paper's token mixing:
the head will see prefixes of drafted tokens); of each exchanged token the head says from the draft's hidden state whether the
target accepts it. The label is min(1, p / q) of the proposal after the text's own prefix, the loss a cross-entropy in which
rejections weigh six times (the paper's). Ours: each row draws its temperature from `train.temperatures`, 0 meaning that the
likeliest token is proposed and accepted where it is the target's: so one head serves greedy and sampled decoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from specbench.config.options import ConfigError
from specbench.pair.load import load_model
from specbench.pair.spec import specify
from specbench.parts.heads.base import TargetParts, build_heads
from specbench.parts.heads.files import builtin_folder
from specbench.parts.heads.stored import save_heads
from specbench.parts.stops.specdec_pp import AcceptanceHead
from specbench.train.calibrate import calibration_prompts, calibration_text
from specbench.train.card import write_training
from specbench.train.chats import HELDOUT, ChatBatches, chat_facts
from specbench.train.common import Teacher, facts_of, fit, identity_of
from specbench.train.distill import final_hidden, head_of
from specbench.train.loop import BatchSource
from specbench.train.settings import Settings
from specbench.train.target import device_of

MIXED = 0.85  # of the text's tokens that are exchanged for the draft's proposals
REJECTION_WEIGHT = 6.0
CALIBRATION_ROWS = 64
BUILTIN_PAIR = ("builtin:target", "builtin:draft")  # whose head has its folder in this package
Text = tuple[Tensor, Tensor, Tensor | None]  # ids, the target's last hidden states on them, the positions that are judged


@torch.no_grad()
def proposals(p: Tensor, q: Tensor, temperatures: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A token of the draft's at every place and the chance that the target accepts it: int64 and float32 (rows, length).

    p, q: logits (rows, length, vocab) of target and draft; temperatures (rows), 0: the likeliest token.
    """
    shared = min(p.shape[-1], q.shape[-1])
    p, q = p[..., :shared].float(), q[..., :shared].float()
    ids = q.isfinite().flatten(0, 1).any(0).nonzero()[:, 0]  # of a draft over some ids: those are all that it can propose
    q = q[..., ids]
    heat = temperatures.clamp(min=1e-6)[:, None, None]
    law_q, p_heated = (q / heat).softmax(-1), p / heat
    drawn = torch.multinomial(law_q.flatten(0, 1), 1, generator=generator).view(q.shape[:2])
    places = torch.where(temperatures[:, None] > 0, drawn, q.argmax(-1))[..., None]
    tokens = ids[places]
    log_p = p_heated.gather(-1, tokens) - p_heated.logsumexp(-1, keepdim=True)
    chance = (log_p - law_q.gather(-1, places).log()).exp().clamp(max=1.0)
    tokens, chance = tokens[..., 0], chance[..., 0]
    return tokens, torch.where(temperatures[:, None] > 0, chance, (tokens == p.argmax(-1)).float())


class MixedBatches:
    """Batches for the head: the draft's hidden states of text with its own proposals in it, and their labels.

    mixed: share of tokens that are exchanged. own: where the target's text comes from.
    """

    def __init__(self, own: BatchSource, target: nn.Module, draft: nn.Module, temperatures: list[float], seed: int):
        self.own, self.target, self.draft, self.temperatures, self.seed = own, target, draft, temperatures, seed
        self.step = 0

    def next(self, rows: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, int64 (rows, length), -1 where there is no text; the draft's hidden states (rows, length, width); labels
        float32 (rows, length), -1 where none was proposed."""
        ids, hidden, judged = (*self.own.next(rows, length), None)[:3]
        generator = torch.Generator(ids.device).manual_seed(self.seed * 1_000_003 + self.step)
        self.step += 1
        among = torch.tensor(self.temperatures, device=ids.device)
        chosen = among[torch.randint(len(among), (len(ids),), generator=generator, device=ids.device)]
        return ids, *mixed(ids, hidden, self.target, self.draft, chosen, MIXED, generator, judged)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "own": self.own.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.own.load_state_dict(state["own"])


@torch.no_grad()
def mixed(
    ids: Tensor,
    hidden: Tensor,
    target: nn.Module,
    draft: nn.Module,
    temperatures: Tensor,
    share: float,
    generator: torch.Generator,
    judged: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The draft's hidden states of the text with a share of its tokens exchanged, and labels, as `MixedBatches.next` has them.

    hidden (rows, length, width): the target's on the text as it is. judged: bool (rows, length), the places whose next token
    may be exchanged (of a chat: the reply's); None: all.
    """
    text = ids.clamp(min=0)
    p = head_of(target)(hidden.float())
    q = draft(input_ids=text, use_cache=False).logits
    tokens, chance = proposals(p[:, :-1], q[:, :-1], temperatures, generator)  # for the places from 1 on
    exchanged = torch.rand(tokens.shape, generator=generator, device=ids.device) < share
    exchanged &= ids[:, 1:] >= 0 if judged is None else judged[:, :-1] & (ids[:, 1:] >= 0)
    text[:, 1:] = torch.where(exchanged, tokens, text[:, 1:])
    labels = torch.full_like(text, -1.0, dtype=torch.float32)
    labels[:, 1:] = torch.where(exchanged, chance, -1.0)
    return final_hidden(draft, text, False), labels


def acceptance_loss(head: AcceptanceHead, ids: Tensor, hidden: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats per labelled token, rejections weighed more; shapes as `MixedBatches.next`'s."""
    logs = head(hidden).log_softmax(-1)
    losses = -(labels * logs[..., 1] + REJECTION_WEIGHT * (1.0 - labels) * logs[..., 0])
    there = (labels >= 0).float()
    return (losses * there).sum() / there.sum().clamp(min=1)


def train_acceptance_head(settings: Settings) -> dict[str, Any]:
    """Train the head of the pair's draft for the pair's target; returns the facts for the card.

    Raises ConfigError for a pair without a draft, and without `train.out` for another pair than the built-in one.
    """
    options, pair = settings.train, settings.pair
    if pair.draft is None:
        raise ConfigError("pair.draft", None, "the head reads a draft model's hidden states: name one")
    if options.out is None and (pair.target, pair.draft) != BUILTIN_PAIR:
        raise ConfigError("train.out", None, f"name a folder for the head of {pair.draft}")
    out = Path(options.out) if options.out else builtin_folder(AcceptanceHead.family)
    teacher = Teacher.of(settings)
    spec = specify(pair).draft
    assert spec is not None
    draft = load_model(replace(spec, dtype="float32", device="cpu")).module.to(device_of(teacher.target))
    torch.manual_seed(options.seed)
    head = build_heads(AcceptanceHead, TargetParts.of(draft, identity_of(pair, "draft")), settings.heads or {})
    head.to(head.target.device)
    batches = MixedBatches(teacher.batches, teacher.target, draft, options.temperatures, options.seed)
    name = settings.part
    history, complete = fit(settings, name, head, partial(acceptance_loss, head), batches)
    report = facts_of(settings, name, head, (len(head.layers), head.target.width), history, complete) | {
        "options": head.options,
        "own_text": settings.chosen().own_text,
        "draft": pair.draft,
        "judged_by": pair.target,
        "generated_rows": teacher.batches.generated,
    }
    if isinstance(teacher.batches, ChatBatches):
        report |= chat_facts(teacher.batches, teacher.folder)
    if complete:
        source, texts = own_texts(settings, teacher)
        head.calibration = calibrate_head(head, teacher.target, draft, texts, options.seed) | {
            "prompts": source,
            "target_sha256": identity_of(pair, "target"),
        }
        report["heldout_loss"] = {"own text": head.calibration["loss"]}
        report["calibration"] = head.calibration
        save_heads(head, out, options.mantissa_bits)
        write_training(out, report)
    return report


def own_texts(settings: Settings, teacher: Teacher) -> tuple[str, Iterable[Text]]:
    """Text of the target that nothing was trained on, and where its prompts come from in words."""
    options = settings.train
    if isinstance(teacher.batches, ChatBatches):
        return HELDOUT, teacher.batches.heldout(*settings.batch_size)
    source, arrays = calibration_prompts(teacher.folder)
    ids = calibration_text(teacher.target, arrays, CALIBRATION_ROWS, options.new_tokens, teacher.eos_ids, options.seed)
    return source, greedy_texts(teacher.target, ids)


def greedy_texts(target: nn.Module, ids: Tensor) -> Iterator[Text]:
    """Rows of ids (rows, length), -1 past the end, as `calibrate_head` takes them."""
    for chunk in ids.split(8):
        yield chunk, final_hidden(target, chunk.clamp(min=0), False), None


@torch.no_grad()
def calibrate_head(
    head: AcceptanceHead, target: nn.Module, draft: nn.Module, texts: Iterable[Text], seed: int
) -> dict[str, Any]:
    """What the head is worth on greedy proposals after the target's own text.

    accepted: share of the proposals. said_of_accepted, said_of_rejected: the head's mean chance of acceptance for both.
    right_order: how often an accepted proposal has the higher one of the two (area under the curve; 0.5 says nothing).
    """
    generator, losses, num_texts, said, labels = None, 0.0, 0, [], []
    for chunk, hidden, judged in texts:
        generator = generator or torch.Generator(chunk.device).manual_seed(seed)
        temperatures = torch.zeros(len(chunk), device=chunk.device)
        states, truth = mixed(chunk, hidden, target, draft, temperatures, 1.0, generator, judged)
        losses += float(acceptance_loss(head, chunk, states, truth)) * len(chunk)
        num_texts += len(chunk)
        there = truth >= 0
        said.append(head(states).softmax(-1)[..., 1][there].cpu().numpy())
        labels.append(truth[there].cpu().numpy() > 0.5)
    chance, stands = np.concatenate(said), np.concatenate(labels)
    yes, no = np.sort(chance[stands]), np.sort(chance[~stands])
    below = (np.searchsorted(no, yes, "left") + np.searchsorted(no, yes, "right")) / 2
    return {
        "num_positions": len(stands),
        "num_prompts": num_texts,
        "loss": round(losses / num_texts, 4),
        "accepted": round(float(stands.mean()), 4),
        "said_of_accepted": round(float(yes.mean()), 4) if len(yes) else None,
        "said_of_rejected": round(float(no.mean()), 4) if len(no) else None,
        "right_order": round(float(below.mean()) / len(no), 4) if len(yes) and len(no) else None,
    }

"""Online speculative decoding (Liu et al. 2310.07177, ICML 2024): the draft learns from what the target corrects.

Ordinary speculative decoding with an adapter. Every rejected draft leaves a lesson: the text up to there and the target's whole
distribution, which verification computed anyway. When `lessons` of them have gathered, one step of the optimiser moves the
draft towards the target (forward KL, the paper's default), its cache is made anew, and the next rounds are drafted by the next
version of the weights. The output stays the target's own whatever the draft has learned.

The draft is a copy of the pair's: other methods of the run see the pair's own. Its state lasts for a whole pass over the
prompts, so their order is part of the result, and reports say so; rounds record the version that drafted them. Steps are taken
between rounds, on the clock, and booked as `learn` (the paper takes them in idle time of a server, when its buffer exceeds a
size or an age). Of ours: lessons are gathered by number alone, and `positions: all` also learns where the draft was right.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from specbench.method import (
    MOST_NODES,
    Adapter,
    Chain,
    ConfigError,
    Drafter,
    Feedback,
    Method,
    ModelDraft,
    Needs,
    Request,
    Rule,
    Runtime,
    Stop,
    exact_rules,
    make_stop,
    number,
    one_of,
    whole,
)


class Osd(Method):
    """draft_length: tokens drafted per round. learning_rate, lessons, positions: see `OnlineDistillation`.

    stop: a name or a node (docs/options.md). rule: greedy_match | sample_match | delta | ratio; null = match.
    """

    def __init__(
        self,
        *,
        draft_length: int = 4,
        learning_rate: float = 1e-4,
        lessons: int = 16,
        positions: str = "rejected",
        stop: str | Stop | None = None,
        rule: str | Rule | None = None,
    ):
        whole("method.draft_length", draft_length, 1, high=MOST_NODES)
        stop = make_stop(stop, draft_length)
        super().__init__(
            ModelDraft(Chain(), stop),
            rule=rule,
            rules=[*exact_rules(trees=False), "ratio"],
            stop=stop,
            adapter=OnlineDistillation(learning_rate=learning_rate, lessons=lessons, positions=positions, key="method"),
            draft_length=draft_length,
        )


class OnlineDistillation(Adapter):
    """learning_rate: of AdamW. lessons: positions per step. positions: rejected (the paper's) | all (the accepted ones too).

    Usable wherever a method takes an adapter: `method.adapter={_target_: specbench.methods.online.osd.OnlineDistillation}`.
    Raises ConfigError for values out of range and for a draft that follows a script.
    """

    needs = Needs(draft="local", scope="session")

    def __init__(
        self,
        *,
        learning_rate: float = 1e-4,
        lessons: int = 16,
        positions: str = "rejected",
        key: str = "method.adapter",
    ):
        number(f"{key}.learning_rate", learning_rate, 0.0, 1.0, "a number from 0 to 1")
        whole(f"{key}.lessons", lessons, 1, high=MOST_NODES)  # each keeps a row of logits
        one_of(f"{key}.positions", positions, "rejected", "all")
        self.learning_rate, self.num_lessons, self.positions = learning_rate, lessons, positions

    def adopt(self, runtime: Runtime) -> Runtime:
        if runtime.draft is None:
            return runtime  # the drafter says what is missing
        if not isinstance(runtime.draft.module, torch.nn.Module):
            raise ConfigError("pair.draft_errors", None, "a draft that follows a script cannot learn: leave it null")
        self.untaught = runtime.draft.module
        self.module = copy.deepcopy(self.untaught).requires_grad_(True)
        self.vocab_size, self.keeps_rows = runtime.draft.vocab_size, runtime.draft.accepts_logits_to_keep
        self._begin()
        return replace(runtime, draft=runtime.draft.with_module(self.module))

    def _begin(self) -> None:
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=self.learning_rate, weight_decay=0.0)
        self.version = 0
        self.lessons: list[tuple[list[int], list[int], Tensor]] = []  # text, positions in it, the target's logits there

    def reset(self) -> None:
        self.module.load_state_dict(self.untaught.state_dict())
        self.drafter.forget()
        self._begin()

    def attach(self, drafter: Drafter) -> None:
        if not isinstance(drafter, ModelDraft):
            raise ConfigError("method.adapter", type(self).__name__, "teaches a draft model; this method drafts without one")
        self.drafter = drafter

    def begin(self, request: Request, first_token: int) -> None:
        self.text = [*request.prompt_ids, first_token]

    def learn(self, feedback: Feedback) -> None:
        verdict, drafted = feedback.verdict, len(feedback.tree.tokens)
        start, accepted = len(self.text) - 1, verdict.num_accepted  # row r of the forward stands on text[start + r]
        self.text += verdict.tokens
        if drafted:
            first = 0 if self.positions == "all" else accepted
            rows = list(range(first, min(accepted, drafted - 1) + 1))  # where the draft said something
            if rows:
                taught = feedback.evidence.logits[[verdict.rows[row] for row in rows], : self.vocab_size]
                self.lessons.append((self.text[: start + rows[-1] + 1], [start + row for row in rows], taught))
        if sum(len(places) for _, places, _ in self.lessons) >= self.num_lessons:
            self._step()
            self.drafter.forget()

    def _step(self) -> None:
        """One step on all lessons; texts that go on from one another are read once, as the longest of them."""
        texts: list[tuple[list[int], list[int], list[Tensor]]] = []
        for ids, places, taught in self.lessons:
            if texts and ids[: len(texts[-1][0])] == texts[-1][0]:
                texts[-1] = (ids, [*texts[-1][1], *places], [*texts[-1][2], taught])
            else:
                texts.append((ids, list(places), [taught]))
        count = sum(len(places) for _, places, _ in texts)
        self.optimizer.zero_grad(set_to_none=True)
        device = next(self.module.parameters()).device
        with torch.inference_mode(False), torch.enable_grad():
            for ids, places, rows in texts:
                # The LM head is the larger part of a small draft: it reads nothing before the first correction.
                asked = {"logits_to_keep": len(ids) - min(places)} if self.keeps_rows else {}
                said = self.module(input_ids=torch.tensor([ids], device=device), use_cache=False, **asked).logits[0]
                said = said[[place - len(ids) for place in places], : self.vocab_size]
                told = torch.cat(rows).clone().to(device)
                known = said[0].isfinite()  # a reduced LM head says nothing of other ids, so it learns nothing of them
                if not known.all():
                    said, told = said[:, known], told[:, known]
                log_q, log_p = said.float().log_softmax(-1), told.float().log_softmax(-1)
                loss = functional.kl_div(log_q, log_p, reduction="sum", log_target=True) / count
                loss.backward()
        self.optimizer.step()
        self.lessons = []
        self.version += 1

    def facts(self) -> dict[str, float | int | str]:
        return {"learning_rate": self.learning_rate, "lessons": self.num_lessons}

    def memory_bytes(self) -> dict[str, int]:
        weights = sum(p.numel() * p.element_size() for p in self.module.parameters())
        return {"draft_weights_own": weights, "optimizer": 2 * weights}

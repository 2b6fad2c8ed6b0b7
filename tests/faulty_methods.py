"""Methods with one fault each, for the tests of the checks: every one of them is what somebody could write by mistake."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from specbench.engine.request import Outcome, Request
from specbench.engine.sampling import SamplingLaw
from specbench.engine.tree import Contract, DraftTree
from specbench.method import Method, Needs
from specbench.methods.chains.speculative import Speculative


class Typical(Speculative):
    """No fault: typical acceptance, which is lossy and labelled so by its rule."""

    def __init__(self) -> None:
        super().__init__(draft_length=3)
        self.rule = "typical"


class TypicalUnlabelled(Typical):
    """Passes a lossy rule off as exact."""

    def claim(self, law: SamplingLaw) -> str:
        return "greedy-exact" if law.greedy else "sampling-exact"


class ArgmaxUnderRatio(Speculative):
    """Drafts the likeliest token and claims to have drawn it from the softmax."""

    def __init__(self) -> None:
        super().__init__(draft_length=3, rule="ratio")

    def _step(self, feed: list[int], position: int, rows: list[torch.Tensor]) -> int:
        super()._step(feed, position, rows)
        return int(rows[-1].argmax())


class DropsUnlikelyDrafts(Speculative):
    """Looks at a drawn token and keeps it from the target if the draft itself found it unlikely."""

    def __init__(self) -> None:
        super().__init__(draft_length=1, rule="ratio")

    def propose(self, max_depth: int) -> DraftTree:
        tree = super().propose(max_depth)
        if tree.tokens and float(tree.q[0][tree.tokens[0]]) < 0.4:  # type: ignore[index]
            return DraftTree([], num_forwards=1, num_wasted=1)
        return tree


class OtherNoise(Speculative):
    """Matches against samples of the target's under noise of another position."""

    def __init__(self) -> None:
        super().__init__(draft_length=2)

    def decode(self, request: Request) -> Outcome:
        return super().decode(replace(request, noise_key=request.noise_key + 1))


class Remembers(Speculative):
    """Drafts longer and longer blocks, sample after sample."""

    def __init__(self) -> None:
        super().__init__(draft_length=8)
        self.seen = 0

    def begin(self, request: Request, first_token: int) -> None:
        super().begin(request, first_token)
        self.seen += 1

    def propose(self, max_depth: int) -> DraftTree:
        return super().propose(min(max_depth, self.seen))


class IgnoresEos(Method):
    """Goes on behind an EOS."""

    def decode(self, request: Request) -> Outcome:
        return super().decode(replace(request, eos_ids=frozenset()))


class OneTooMany(Method):
    """Stops one token late."""

    def decode(self, request: Request) -> Outcome:
        return super().decode(replace(request, max_new_tokens=request.max_new_tokens + 1))


class MiscountsRounds(Method):
    """Loses a record."""

    def decode(self, request: Request) -> Outcome:
        outcome = super().decode(request)
        return replace(outcome, rounds=outcome.rounds[1:])


class KeepsRejectedRows(Speculative):
    """Leaves rejected drafts in the target's cache."""

    def __init__(self) -> None:
        super().__init__(draft_length=4)

    def open(self, runtime: object) -> None:
        super().open(runtime)  # type: ignore[arg-type]
        self.target.commit = lambda verdict: setattr(self.target, "pending", verdict.extra)  # type: ignore[method-assign]
        self.target.rollback = lambda length: None  # type: ignore[method-assign]

    @property
    def max_nodes(self) -> int:
        return 100


class DraftsOnAnotherPrompt(Speculative):
    """Prefills its draft with a wrong first token: the output stays right, the drafts are bad."""

    def __init__(self) -> None:
        super().__init__(draft_length=4)

    def begin(self, request: Request, first_token: int) -> None:
        wrong = ((request.prompt_ids[0] + 1) % 24, *request.prompt_ids[1:])
        super().begin(replace(request, prompt_ids=wrong), first_token)


class Unseeded(Speculative):
    """Draws from Python's own generator."""

    def __init__(self) -> None:
        super().__init__(draft_length=2, rule="ratio")

    def begin(self, request: Request, first_token: int) -> None:
        super().begin(request, first_token)
        self.generator.manual_seed(random.randrange(2**62))


class OneSeedForAll(Speculative):
    """Ignores the request's key."""

    def decode(self, request: Request) -> Outcome:
        return super().decode(replace(request, noise_key=7))


class NeedsNoDraft(Speculative):
    """Declares a draft model and opens without one."""

    def open(self, runtime: object) -> None:
        if runtime.draft is None:  # type: ignore[attr-defined]
            Method.open(self, runtime)  # type: ignore[arg-type]
        else:
            super().open(runtime)  # type: ignore[arg-type]


class UndeclaredTaps(Method):
    """Takes hidden states that it does not declare."""

    def open(self, runtime: object) -> None:
        super().open(runtime)  # type: ignore[arg-type]
        self.target.tap_layers = (-1,)


class TakesAnything(Method):
    """Does not look at its options."""

    def __init__(self, *, width: int = 3):
        super().__init__()
        self.width = width


class NamesTheWrongOption(Method):
    """Raises an error that is no ConfigError."""

    def __init__(self, *, width: int = 3):
        super().__init__()
        if not isinstance(width, int) or width < 0:
            raise TypeError(f"bad width {width}")


class ClosesOnce(Method):
    """Fails when it is closed without having been opened."""

    needs = Needs()

    def close(self) -> None:
        del self.target


class IidWithoutLaw(Speculative):
    """Claims draws under a contract that its rule does not accept."""

    def __init__(self) -> None:
        super().__init__(draft_length=2, rule="ratio")

    def propose(self, max_depth: int) -> DraftTree:
        tree = super().propose(max_depth)
        tree.contract = Contract.FIXED_SET if tree.tokens else Contract.NONE
        return tree

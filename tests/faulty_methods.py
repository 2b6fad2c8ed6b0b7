"""Methods with one fault each, for the tests of the checks: every one of them is what somebody could write by mistake."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from specbench.engine.sampling import SamplingLaw
from specbench.method import (
    RULES,
    Adapter,
    Contract,
    DraftTree,
    Evidence,
    Method,
    ModelDraft,
    Needs,
    Outcome,
    Request,
    Setting,
    Stop,
    Verdict,
)
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


class _Drafting(Speculative):
    """Speculative decoding whose drafter has the fault. options: of `Speculative`."""

    draft: ClassVar[type[ModelDraft]]
    options: ClassVar[dict[str, Any]] = {"draft_length": 4}

    def __init__(self) -> None:
        super().__init__(**self.options)
        assert isinstance(self.drafter, ModelDraft)
        self.drafter = self.draft(self.drafter.shape, self.drafter.stop)


class _Likeliest(ModelDraft):
    def open(self, setting: Setting) -> None:
        super().open(setting)
        draw = self.choice.draw
        self.choice.draw = lambda logits: (int(logits.argmax()), draw(logits)[1])  # type: ignore[method-assign]


class ArgmaxUnderRatio(_Drafting):
    """Drafts the likeliest token and claims to have drawn it from the softmax."""

    draft, options = _Likeliest, {"draft_length": 3, "rule": "ratio"}


class _Dropping(ModelDraft):
    def propose(self, max_depth: int) -> DraftTree:
        tree = super().propose(max_depth)
        if tree.tokens and float(tree.q[0][tree.tokens[0]]) < 0.4:  # type: ignore[index]
            return DraftTree([], num_forwards=1, num_wasted=1)
        return tree


class DropsUnlikelyDrafts(_Drafting):
    """Looks at a drawn token and keeps it from the target if the draft itself found it unlikely."""

    draft, options = _Dropping, {"draft_length": 1, "rule": "ratio"}


class OtherNoise(Speculative):
    """Matches against samples of the target's under noise of another position."""

    def __init__(self) -> None:
        super().__init__(draft_length=2)

    def decode(self, request: Request) -> Outcome:
        return super().decode(replace(request, noise_key=request.noise_key + 1))


class _Remembering(ModelDraft):
    seen = 0

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        super().begin(request, first_token, evidence)
        self.seen += 1

    def propose(self, max_depth: int) -> DraftTree:
        return super().propose(min(max_depth, self.seen))


class Remembers(_Drafting):
    """Drafts longer and longer blocks, sample after sample."""

    draft, options = _Remembering, {"draft_length": 8}


class _Declared(_Remembering):
    needs = Needs(draft="local", scope="session")


class ForgetsToReset(_Drafting):
    """Says that it keeps state from prompt to prompt, and keeps it when a new pass begins."""

    draft, options = _Declared, {"draft_length": 8}


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


class _Roomy(ModelDraft):
    @property
    def max_nodes(self) -> int:
        return 100


class KeepsRejectedRows(_Drafting):
    """Leaves rejected drafts in the target's cache."""

    draft = _Roomy

    def open(self, runtime: Any) -> None:
        super().open(runtime)
        self.target.commit = lambda verdict: setattr(self.target, "pending", verdict.extra)  # type: ignore[method-assign]
        self.target.rollback = lambda length: None  # type: ignore[attr-defined]


class _OfAnotherPrompt(ModelDraft):
    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        wrong = ((request.prompt_ids[0] + 1) % 24, *request.prompt_ids[1:])
        super().begin(replace(request, prompt_ids=wrong), first_token, evidence)


class DraftsOnAnotherPrompt(_Drafting):
    """Prefills its draft with a wrong first token: the output stays right, the drafts are bad."""

    draft = _OfAnotherPrompt


class _Unseeded(ModelDraft):
    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        super().begin(request, first_token, evidence)
        self.choice.generator.manual_seed(random.randrange(2**62))


class Unseeded(_Drafting):
    """Draws from Python's own generator."""

    draft, options = _Unseeded, {"draft_length": 2, "rule": "ratio"}


class OneSeedForAll(Speculative):
    """Ignores the request's key."""

    def decode(self, request: Request) -> Outcome:
        return super().decode(replace(request, noise_key=7))


class _Undemanding(ModelDraft):
    def open(self, setting: Setting) -> None:
        if setting.runtime.draft is not None:
            super().open(setting)


class NeedsNoDraft(_Drafting):
    """Declares a draft model and opens without one."""

    draft = _Undemanding


class UndeclaredTaps(Method):
    """Takes hidden states that it does not declare."""

    def open(self, runtime: Any) -> None:
        super().open(runtime)
        self.target.tap_layers = (-1,)


class TakesAnything(Method):
    """Does not look at its options."""

    def __init__(self, *, width: int = 3):
        super().__init__()
        self.width = width


class Loose(Stop):
    """A part that does not look at its options."""

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

    def close(self) -> None:
        del self.target


class _Mislabelled(ModelDraft):
    def propose(self, max_depth: int) -> DraftTree:
        tree = super().propose(max_depth)
        tree.contract = Contract.FIXED_SET if tree.tokens else Contract.NONE
        return tree


class IidWithoutLaw(_Drafting):
    """Claims draws under a contract that its rule does not accept."""

    draft, options = _Mislabelled, {"draft_length": 2, "rule": "ratio"}


# ------------------------------------------------------------------------------------------- hooks that do what they must not
PARTS: dict[str, Callable[[Method], Any]] = {
    "method": lambda method: method,
    "drafter": lambda method: method.drafter,
    "stop": lambda method: method.stop,
    "schedule": lambda method: method.schedule,
    "adapter": lambda method: method.adapter,
    "rule": lambda method: method.rule,
}
ACTS: dict[str, Callable[[], Any]] = {}


def act(function: Callable[[], Any]) -> Callable[[], Any]:
    ACTS[function.__name__] = function
    return function


@act
def raises() -> None:
    raise KeyError("what the plugin forgot")


@act
def exits() -> None:
    sys.exit(0)


@act
def vanishes() -> None:
    os._exit(0)


@act
def hangs() -> None:
    time.sleep(3600)


@act
def spins() -> None:
    while True:
        with contextlib.suppress(Exception):
            sum(range(1000))


class FailsIn(Speculative):
    """Speculative decoding that does `how` (of ACTS) in a hook ("drafter.propose") from its call number `after` on."""

    def __init__(self, *, hook: str, how: str = "raises", after: int = 0):
        super().__init__(draft_length=3, rule=replace(RULES["greedy_match"]), adapter=Adapter())
        part, name = hook.split(".")
        owner, calls = PARTS[part](self), itertools.count()
        real = getattr(type(owner), name)

        def faulty(self: Any, *arguments: Any, **options: Any) -> Any:
            if next(calls) >= after:
                ACTS[how]()
            return real(self, *arguments, **options)

        faulty.__code__ = faulty.__code__.replace(co_name=name, co_qualname=f"Faulty{part.title()}.{name}")
        object.__setattr__(owner, "__class__", type(f"Faulty{part.title()}", (type(owner),), {name: faulty}))


class _Forging(ModelDraft):
    """Proposes what `forge` makes of a good tree."""

    forge: Callable[[DraftTree], DraftTree]

    def propose(self, max_depth: int) -> DraftTree:
        tree = super().propose(max_depth)
        return type(self).forge(tree) if tree.tokens else tree


FORGED: dict[str, Callable[[DraftTree], DraftTree]] = {
    "out of range": lambda tree: DraftTree([*tree.tokens[:-1], 10**6]),
    "negative": lambda tree: DraftTree([-1, *tree.tokens[1:]]),
    "too many": lambda tree: DraftTree(tree.tokens * 40, [-1] * (40 * len(tree.tokens))),
    "too deep": lambda tree: DraftTree([*tree.tokens, *tree.tokens], num_forwards=1),
    "no law": lambda tree: DraftTree(tree.tokens, contract=Contract.WITHOUT_REPLACEMENT),
}


class Forges(_Drafting):
    """A drafter that breaks its promise. what: of FORGED."""

    draft = _Forging

    def __init__(self, *, what: str, rule: str | None = None):
        Speculative.__init__(self, draft_length=3, rule=rule)
        assert isinstance(self.drafter, ModelDraft)
        kind: Any = type("Forging", (_Forging,), {"forge": staticmethod(FORGED[what])})
        kind.max_nodes = property(lambda self: 6)
        self.drafter = kind(self.drafter.shape, self.drafter.stop)


JUDGED: dict[str, Callable[[Verdict], Verdict]] = {
    "another path": lambda verdict: Verdict((7,), (0, *verdict.tokens[-1:])),
    "other tokens": lambda verdict: Verdict(verdict.path, (*verdict.tokens[:-1], -5)),
    "too many tokens": lambda verdict: Verdict(verdict.path, (*verdict.tokens, 1)),
}


class Misjudges(Speculative):
    """A rule whose verdicts are none. what: of JUDGED."""

    def __init__(self, *, what: str):
        real = RULES["greedy_match"]
        wrong = replace(real, function=lambda tree, choice: JUDGED[what](real.function(tree, choice)))
        super().__init__(draft_length=3, rule=wrong)


OUTCOMES: dict[str, Callable[[Outcome], Outcome]] = {
    "no output": lambda outcome: replace(outcome, output_ids=[]),
    "strings": lambda outcome: replace(outcome, output_ids=["a"] * len(outcome.output_ids)),  # type: ignore[list-item]
    "too long": lambda outcome: replace(outcome, output_ids=[*outcome.output_ids, 1]),
    "no reason": lambda outcome: replace(outcome, finish_reason="bored"),
    "lost rounds": lambda outcome: replace(outcome, rounds=outcome.rounds[1:]),
    "no outcome": lambda outcome: None,  # type: ignore[dict-item, return-value]
}


class Misreports(Speculative):
    """What it says of a sample is not so. what: of OUTCOMES."""

    def __init__(self, *, what: str):
        super().__init__(draft_length=3)
        self.what = what

    def decode(self, request: Request) -> Outcome:
        return OUTCOMES[self.what](super().decode(request))

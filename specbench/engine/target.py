"""What may be asked of a target, whichever backend answers, and who answers for which model.

session.py               transformers' own forward on a key-value cache with O(1) rollback; the reference
backends/native          Llama-shaped models on a CPU in C++; row for row the same bits in any company
backends/fixed.py        transformers' forward with one shape per number of rows, compiled or replayed as CUDA graphs
backends/recurrent.py    models with a recurrent state: token by token, committed by going back to a kept state
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from specbench.engine.tree import DraftTree, Evidence, Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from specbench.engine.branching import Branching
    from specbench.engine.model import Model
    from specbench.engine.sampling import SamplingLaw
    from specbench.engine.session import Session


class Target(Protocol):
    """One sequence on the target. `can`: tree, taps, riders, logits, layers, fork, as far as the backend and the model go;
    chain and choice, where several things are one program (`Chaining`, `Choosing`).
    """

    model: Model
    pending: int | None
    tap_layers: tuple[int, ...]

    @property
    def can(self) -> frozenset[str]: ...

    @property
    def length(self) -> int:
        """Tokens fed."""

    @property
    def nbytes(self) -> int:
        """Bytes of what it keeps of the text."""

    def start(self, capacity: int) -> None:
        """A new sequence of at most `capacity` fed positions."""

    def feed(self, ids: Sequence[int], *, last_only: bool = False) -> Tensor:
        """Append rows; logits [n, vocab] after them ([1, vocab] with last_only)."""

    def prefill(self, prompt_ids: Sequence[int]) -> Evidence:
        """Feed the prompt; the caller's choice from its last logits becomes `pending`."""

    def forward(self, tree: DraftTree) -> Evidence:
        """Feed pending, nodes and riders, in one go."""

    def commit(self, verdict: Verdict) -> None:
        """Keep pending and the accepted path; the verdict's last token is pending next."""

    def mark(self) -> Any:
        """Where it stands, for `restore`."""

    def restore(self, mark: Any) -> None: ...


class Choosing(Target, Protocol):
    """A target that can "choice": its own token for every row, and how many drafts of a chain agree, where its logits are."""

    def forward_and_choose(self, tree: DraftTree, law: SamplingLaw, position: int, noise_key: int) -> Evidence:
        """`forward`, with `Evidence.own` where that is cheaper than to ask the logits. position: of row 0's token."""


class Chaining(Protocol):
    """A draft's sequence that can "chain": feed, choose, feed the choice, and the host reads once."""

    def chain(self, ids: Sequence[int], length: int, law: SamplingLaw, position: int, noise_key: int) -> Sequence[int] | None:
        """Feed ids and the first `length` - 1 of `length` tokens of its own choice, which stand from output position `position`
        on; these tokens, or None where they are more than a program may have."""


def held_bytes(session: Any, role: str) -> dict[str, int]:
    """Bytes by part of what a sequence of a model in this role keeps: of the text, and in a backend's programs."""
    more: dict[str, int] = getattr(session, "program_bytes", {})
    return {f"{role}_{part}": size for part, size in ({"kv": session.nbytes} | more).items()}


def open_target(model: Model, taps: Sequence[int] = ()) -> Target:
    """The backend for a model."""
    if model.is_recurrent:
        from specbench.engine.backends.recurrent import RecurrentSession

        return RecurrentSession(model, taps)
    return open_session(model, taps)


def open_session(model: Model, taps: Sequence[int] = ()) -> Session:
    """A sequence that can be cut back, for targets and draft models. Raises ValueError for a model with a recurrent state."""
    if model.is_recurrent:
        raise ValueError("its state cannot be cut back")
    if model.opens is not None:
        session: Session = model.opens()
        return session
    if model.native is not None:
        from specbench.engine.backends.native.session import NativeSession

        return NativeSession(model, taps)
    if model.fixed is not None:
        from specbench.engine.backends.captures import CAPTURES
        from specbench.engine.backends.fixed import FixedSession

        return FixedSession(model, taps, capture=CAPTURES[model.fixed])
    from specbench.engine.session import Session

    return Session(model, taps)


def open_branching(model: Model) -> Branching:
    """The same with trees grown behind the sequence. Raises ValueError for a model that takes chains only."""
    if model.opens is not None:
        session: Branching = model.opens()
        return session
    if model.native is not None:
        from specbench.engine.backends.native.session import NativeBranching

        return NativeBranching(model)
    if model.fixed is not None:
        from specbench.engine.backends.captures import CAPTURES
        from specbench.engine.backends.fixed import FixedBranching

        return FixedBranching(model, capture=CAPTURES[model.fixed])
    from specbench.engine.branching import BranchingSession

    return BranchingSession(model)

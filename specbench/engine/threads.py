"""How many threads a forward has, and whose they are: torch's, or the native engine's own.

Both pools keep their threads spinning for a while after work. Side by side on the same cores they take them from each other: a
torch operation between two native forwards (the largest of many logits, say) wakes torch's threads, and the next forward's
helpers wait until those fall asleep. Verifying two rows of SmolLM2 on two cores took more than twice its time. Where the native
engine computes, torch therefore keeps to one thread.
"""

from __future__ import annotations

import torch

_native: int | None = None  # threads of native forwards; None: torch's pool is the one in use


def count() -> int:
    """Threads of a forward in this process."""
    return torch.get_num_threads() if _native is None else _native


def use(threads: int) -> None:
    """Give forwards this many from now on."""
    global _native
    if _native is not None:
        _native = threads
    elif torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def keep_to(backend: str) -> None:
    """The models of this process run on `backend`: as many threads as before, in the pool that it computes with."""
    global _native
    threads = count()
    _native = threads if backend == "native" else None
    torch_threads = 1 if backend == "native" else threads
    if torch.get_num_threads() != torch_threads:
        torch.set_num_threads(torch_threads)

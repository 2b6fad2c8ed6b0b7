"""What turns a step over fixed buffers into a program: torch.compile, a CUDA graph, or nothing."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from specbench.engine.backends.fixed import Capture
from specbench.engine.backends.programs import Step


def compiled(step: Step) -> Step:
    """Compiled for exactly these shapes; the C++ or Triton code is kept in the user's cache from run to run."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    from specbench.engine.backends.native.build import cache_folder

    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):  # torch writes its default there on the way
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder().parent / "inductor")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)  # one for each number of rows
    return torch.compile(step, dynamic=False)


def as_written(step: Step) -> Step:
    """The step itself: what a graph would replay, computed anew each time. For tests of all that is around one."""
    return step


class Graph:
    """A CUDA graph of the step: its kernels are recorded once and started together. A `Step`.

    reserved_bytes: of device memory that the recording took beyond what earlier ones had left free (torch's part of it, not the
    driver's list of kernels).

    All graphs of a device are recorded on one stream and share one pool of memory, so that what a step computes on the way
    lies where other steps' ways lie. That is safe as long as no two of them run at once (all are started on the current stream)
    and an answer lives as long as its graph: recorded later, a graph takes only what is free in the pool at that time.
    """

    def __init__(self, step: Step):
        place = _place(torch.cuda.current_device())
        # After runs that let libraries allocate and choose what they keep.
        current = torch.cuda.current_stream()
        place.stream.wait_stream(current)
        with torch.cuda.stream(place.stream):
            for _ in range(2):
                step()
        current.wait_stream(place.stream)
        self._graph = torch.cuda.CUDAGraph()
        with _undisturbed():
            before = torch.cuda.memory_reserved()
            with torch.cuda.graph(self._graph, pool=place.pool, stream=place.stream):
                self._output = step()
            self.reserved_bytes = max(0, torch.cuda.memory_reserved() - before)

    def __call__(self) -> Any:
        self._graph.replay()
        return self._output


class _Place(NamedTuple):
    """Where a device's graphs are recorded. anchor: a graph that is never dropped: a pool whose last graph has gone is none."""

    stream: Any
    pool: Any
    anchor: Any


@functools.cache
def _place(device: int) -> _Place:
    # torch's own stream for recordings is one for all devices, and of the device that was the first.
    stream, pool, anchor = torch.cuda.Stream(device), torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
    number = torch.zeros(1, device=f"cuda:{device}")
    with _undisturbed(), torch.cuda.graph(anchor, pool=pool, stream=stream):
        number.zero_()
    return _Place(stream, pool, (anchor, number))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Nothing is collected while it lasts, and cuBLAS keeps no workspace from before or behind it.

    A graph that the collector destroys in the middle of a recording breaks it (pytorch #161037), and sessions, which hold
    theirs in a circle, are left to the collector. torch keeps a workspace for each stream and drops it with any graph that was
    recorded there, under the others' feet (pytorch #193402): one that is taken while a graph is recorded and given back behind
    it lies in the pool, which is never dropped.
    """
    collects = gc.isenabled()
    gc.disable()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()
        if collects:
            gc.enable()


# Seconds a layer on two idle cores of an AMD EPYC (targets and drafts of the built-in pair and of SmolLM2, 2 to 30 layers):
# 1.1 to 2.2 of the first program of a process, 1.1 to 1.4 of the next, 0.15 to 0.45 of one that was kept. Compiled, a chain of
# k tokens would be k forwards to compile, and on a CPU there is no wait to save.
CAPTURES = {
    "compiled": Capture(compiled, layer_seconds=1.5),
    "graph": Capture(Graph, at_once=True),
    "as_written": Capture(as_written, at_once=True),
}

"""What turns a step over fixed buffers into a program: torch.compile, a CUDA graph, or nothing."""

from __future__ import annotations

import os
from typing import Any

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
    """A CUDA graph of the step: its kernels are recorded once and started together. A `Step`."""

    def __init__(self, step: Step):
        # Recorded on a stream of its own, after runs that let libraries allocate what they keep.
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(2):
                step()
        current.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = step()

    def __call__(self) -> Any:
        self._graph.replay()
        return self._output


# A second a layer is a guess: never measured idle; with other load on two cores the built-in target took 7 to 13. Compiled, a
# chain of k tokens would be k forwards to compile, and on a CPU there is no wait to save.
CAPTURES = {
    "compiled": Capture(compiled, layer_seconds=1.0),
    "graph": Capture(Graph, at_once=True),
    "as_written": Capture(as_written, at_once=True),
}

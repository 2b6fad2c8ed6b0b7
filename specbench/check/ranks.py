"""Whether heads draft what they are judged by: `ranks`, by which training measures them, and the drafts that rounds verify."""

from __future__ import annotations

import torch

from specbench.check.bench import GREEDY, MAX_NEW_TOKENS, Bench
from specbench.check.result import Result
from specbench.parts.heads.base import Heads

TAP = -1  # the LM head's input


@torch.inference_mode()
def drafted_ranks(bench: Bench) -> Result:
    """Every node of a draft has the rank among its parent's candidates that `ranks` finds for it behind the same text.

    In a static tree that rank is the node's choice; the children of a node of a dynamic tree are the first candidates.
    """
    method = bench.method(GREEDY)
    drafter = method.drafter
    heads = getattr(drafter, "heads", None)
    if not isinstance(heads, Heads):
        return Result.of(None, "no heads")
    compared = 0
    for number in range(len(bench.prompts)):
        request = bench.request(number)
        prompt = request.prompt_ids
        method.target.start(len(prompt) + MAX_NEW_TOKENS + drafter.max_nodes + 1)
        evidence = method.target.prefill(prompt)
        first = int(evidence.logits.argmax())
        drafter.begin(request, first, evidence)
        tree = drafter.propose(MAX_NEW_TOKENS)
        found: dict[int, list[int]] = {}  # ranks of the children by their parent
        paths: list[tuple[int, ...]] = []
        for node, token in enumerate(tree.tokens):
            parent = tree.parent(node)
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
            if len(paths[node]) <= heads.max_depth:
                behind = [-1] * (1 + heads.max_depth - len(paths[node]))
                ids = torch.tensor([[*prompt, first, *paths[node], *behind]], device=heads.target.device)
                hidden = torch.zeros(1, ids.shape[1], heads.target.width, device=ids.device, dtype=heads.target.dtype)
                hidden[0, : len(prompt)] = evidence.taps[TAP]
                rank = int(heads.ranks(ids, hidden)[len(paths[node]) - 1, 0, len(prompt) - 1])
                found.setdefault(parent, []).append(rank)
        plan = getattr(drafter, "plan", None)
        for parent, ranks in found.items():
            children = [node for node in range(len(tree.tokens)) if tree.parent(node) == parent]
            wanted = list(range(len(ranks))) if plan is None else [plan.nodes[node][-1] for node in children]
            if sorted(ranks) != wanted:
                where = f"prompt {number}, behind {paths[parent] if parent >= 0 else 'the pending token'}"
                return Result.of(f"{where}: drafted are candidates {wanted}, and ranks says {ranks}", "")
            compared += len(ranks)
    return Result.of(None, f"{compared} nodes are the candidates that ranks counts")

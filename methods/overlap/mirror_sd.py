"""Mirror-SD: the target's early exit says what the draft prepares for (Bhendawade et al. 2510.13161).

While the target's upper layers verify a draft, the draft model, in a process and on a device of its own, prepares the next one
for the candidates that the LM head sees behind the lower layers: a branch for each place of the draft and each candidate there.
A verdict that meets a branch costs no drafting; any other is answered as in plain speculative decoding
(`parts.schedules.foreseeing.mirrored`). Messages are integers, and output ids equal autoregressive decoding's: the early exit
decides what is prepared and never what stands.

What deviates, or the paper leaves open: the exit (half of the layers, untrained, its hidden states through the target's own
final norm and LM head), and that every place has candidates, as in its figure. The token that is drafted at a place is no
candidate there: a verdict never corrects to it. A verdict that comes while its branch is still growing is answered with what
there is of it. The draft drafts token by token: speculative streaming, which the paper trains into its drafts, is not here, and
no draft is trained for it. Nothing is prepared for the prefill's token. At temperature > 0 candidates are ranked under the
target's noise.
"""

from __future__ import annotations

from specbench.method import MOST_NODES, Method, Rule, not_together, whole
from specbench.parts.schedules.foreseeing.mirrored import Mirrored


class MirrorSd(Method):
    """draft_length: tokens of a draft at most. num_candidates: the paper's kappa, told for every place of a draft.

    exit_layer: layers of the target before the exit; null: half of them. fallback: what answers a verdict without a branch,
    draft (at once, the target waits) | lookup (in the text). draft_cores: CPU cores of the draft's process when both models run
    on the CPU. rule: greedy_match | sample_match; null = by temperature. Raises ConfigError for values out of range.
    """

    def __init__(
        self,
        *,
        draft_length: int = 4,
        num_candidates: int = 2,
        exit_layer: int | None = None,
        fallback: str = "draft",
        draft_cores: int = 1,
        rule: str | Rule | None = None,
    ):
        whole("method.num_candidates", num_candidates, 1, high=MOST_NODES)
        whole("method.exit_layer", exit_layer, 1, null="half of the layers", high=MOST_NODES)
        whole("method.draft_length", draft_length, 1, high=MOST_NODES)
        branches, said = (draft_length + 1) * num_candidates, "that is {rows} branches"
        not_together("method.num_candidates", num_candidates, branches, MOST_NODES, said, draft_length=draft_length)
        schedule = Mirrored(draft_length, num_candidates, exit_layer, fallback, draft_cores)
        super().__init__(schedule=schedule, rule=rule, rules=("greedy_match", "sample_match"), draft_length=draft_length)

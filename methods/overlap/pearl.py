"""PEARL: parallel speculative decoding with adaptive draft length (Liu et al. 2408.11850, ICLR 2025).

Draft and target run in lockstep, each in its own process on its own device (`parts.schedules.lockstep`). A run of accepted
blocks is a draft of adaptive length; there is no bonus token.

Messages are integers, as in the authors' later engine (nano-PEARL), not packed probabilities: the block's ids in one direction,
the committed ids and the fate of the drafts in the other. With the rules that match against the target's own tokens the output
equals autoregressive decoding token for token, at any temperature (keyed noise). `rule=lockstep_ratio` is the paper's own rule,
exact in law; the draft's distributions then travel too. Beyond the published code: EOS and length limit are honoured by both
sides, and no unverified token is ever emitted.
"""

from __future__ import annotations

from specbench.method import MOST_NODES, ConfigError, Method, Rule, Stop, flag, make_stop, one_of, whole
from specbench.parts.schedules.calibration import MAX_LENGTH
from specbench.parts.schedules.lockstep.schedule import Lockstep


class Pearl(Method):
    """draft_length: tokens of a block, or "auto": the measured ratio of the two models' forwards, rounded.

    rule: greedy_match | sample_match | delta | lockstep_ratio; null = match, by temperature. draft: how it chooses tokens at a
    temperature above 0, keyed (with the target's noise) | greedy; under lockstep_ratio it draws from its own law. pre_verify,
    post_verify: false for the paper's ablations. draft_cores: CPU cores of the draft's process when both models run on the CPU.
    stop: a name or a node (docs/options.md): may end a block early. Raises ConfigError for values out of range.
    """

    def __init__(
        self,
        *,
        draft_length: int | str = "auto",
        rule: str | Rule | None = None,
        draft: str = "keyed",
        pre_verify: bool = True,
        post_verify: bool = True,
        draft_cores: int = 1,
        stop: str | Stop | None = None,
    ):
        whole("method.draft_length", draft_length, 1, auto=True, high=MOST_NODES)
        one_of("method.draft", draft, "keyed", "greedy")
        if rule == "lockstep_ratio" and draft == "greedy":
            raise ConfigError("method.draft", draft, "is not exact under method.rule=lockstep_ratio: leave it at keyed")
        flag("method.pre_verify", pre_verify)
        flag("method.post_verify", post_verify)
        length = None if draft_length == "auto" else int(draft_length)
        policy = make_stop(stop, length or MAX_LENGTH, worker=True)
        super().__init__(
            schedule=Lockstep(length, draft, pre_verify, post_verify, draft_cores, policy),
            rule=rule,
            rules=("greedy_match", "sample_match", "delta", "lockstep_ratio"),
            draft_length=length,
        )

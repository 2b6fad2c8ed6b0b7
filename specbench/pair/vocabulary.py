"""Which ids target and draft have in common, and why a pair is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def vocabulary(config: Any, tokenizer: Any) -> int:
    """Number of ids that a model may emit: its rows, less the padding ones that its tokenizer has no token for."""
    return min(config.get_text_config(decoder=True).vocab_size, 1 + max(tokenizer.get_vocab().values()))


def common_vocabulary(target_config: Any, draft_config: Any, target_tokenizer: Any, draft_tokenizer: Any) -> int:
    """Number of the target's ids that the draft has rows for; raises ValueError where the two give an id two meanings.

    Rows beyond the tokenizers' own ids are padding (Qwen2.5 has 151,936 or 152,064 rows, CodeLlama 32,016 or 32,000) and no
    mismatch: the target keeps its own range, the draft proposes nothing outside its own (q = 0 there).
    """
    rows = min(vocabulary(target_config, target_tokenizer), draft_config.get_text_config(decoder=True).vocab_size)
    target_ids = {i: token for token, i in target_tokenizer.get_vocab().items()}
    draft_ids = {i: token for token, i in draft_tokenizer.get_vocab().items()}
    common = sorted(i for i in target_ids.keys() & draft_ids.keys() if i < rows)
    wrong = [i for i in common if target_ids[i] != draft_ids[i]]
    if wrong:
        i = wrong[0]
        raise ValueError(
            f"the tokenizers differ on {len(wrong)} of {len(common)} common ids, first at {i}: "
            f"{target_ids[i]!r} in the target, {draft_ids[i]!r} in the draft"
        )
    if not common or len(common) < 0.9 * min(len(target_ids), len(draft_ids)):
        raise ValueError(f"the tokenizers share only {len(common)} ids")
    sample = "def f(x):\n    return x + 1  # été 日本\n"
    if target_tokenizer(sample).input_ids != draft_tokenizer(sample).input_ids:
        raise ValueError("the tokenizers cut the same text into different ids")
    return rows

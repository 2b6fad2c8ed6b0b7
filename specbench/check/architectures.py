"""`python -m specbench.check.architectures`: what becomes of every causal architecture of the installed transformers.

Each is made as a tiny random model and asked for chains, rollbacks and trees, whose logits must be those of fresh forwards. The
result is docs/architectures.md: exact, chains only, refused, or not made here, each with the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from specbench.config.options import ConfigError
from specbench.config.say import say
from specbench.engine.model import Model
from specbench.engine.probe import probe_rollback
from specbench.engine.target import open_target
from specbench.engine.tree import DraftTree, Verdict

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
VOCAB_SIZE, MOST_PARAMETERS, TOLERANCE = 64, 100_000_000, 1e-4
# Options of transformers' configurations by their size here; each configuration takes those that it has.
SIZES: dict[int, str] = {
    VOCAB_SIZE: "vocab_size vocab_size_per_layer_input char_vocab_size",
    32: "hidden_size n_embd d_model embedding_size dim_model hidden_dim emb_dim word_embed_proj_dim "
    "cross_attention_hidden_size",
    48: "intermediate_size ffn_dim n_inner d_inner ffn_hidden_size dim_ff dff decoder_ffn_dim encoder_ffn_dim "
    "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size intermediate_size_mlp "
    "expert_ffn_hidden_size",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers num_key_value_heads "
    "num_kv_heads num_experts_per_tok moe_topk moe_k top_k_experts n_group topk_group",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_local_experts "
    "num_experts n_routed_experts moe_num_experts index_topk index_n_heads",
    8: "head_dim d_kv attention_head_dim kv_channels rotary_dim qk_rope_head_dim qk_nope_head_dim v_head_dim index_head_dim "
    "q_lora_rank kv_lora_rank hidden_size_per_layer_input",
    6: "sliding_window attention_window window_size local_attention_window",
    256: "max_position_embeddings n_positions max_seq_len n_ctx max_sequence_length",
}
MEANINGS = {"is_decoder": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# What some need besides; the first word is the type, further ones name a variant.
MORE: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "dots1": {"n_shared_experts": 1},
    "falcon alibi": {"alibi": True},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "moshi": {"audio_vocab_size": VOCAB_SIZE},
    "qwen4_exp_text": {"layer_types": ["linear_attention"] * 2},
    "reformer": {"axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}
PROMPT = [(37 * i + 11) % 58 + 5 for i in range(19)]  # ids that no configuration gives a meaning, three windows long
# Rounds: the parents of the drafted nodes, and the path that is kept of them.
Rounds = Sequence[tuple[Sequence[int], tuple[int, ...]]]
CHAIN = range(-1, 7)
ROUNDS: Rounds = [(CHAIN[:4], (0, 1)), (CHAIN, tuple(range(8))), (CHAIN[:3], ()), (CHAIN[:6], (0,)), (CHAIN[:2], (0, 1))]
BRANCHES: Rounds = [
    ([-1, -1, 0, 1, 0, 2, 2, 5], (0, 2, 6)),
    ([-1, -1, -1, 2, 3, 4, 5, 6, 7, 0], (2, 3, 4, 5, 6, 7, 8)),
    ([-1, -1], ()),
    ([-1, 0, 0, 1, 1], (0, 1, 4)),
    (CHAIN[:4], (0, 1)),
]


def names() -> list[str]:
    """Every type that transformers has a causal language model for, and the variants."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *(name for name in MORE if " " in name)})


def tiny_config(kind: Any, name: str = "") -> Any:
    """A configuration of that class, as small as it goes."""
    known, more = {field.name for field in dataclasses.fields(kind)}, MORE.get(name, {})
    given: dict[str, Any] = {key: size for size, keys in SIZES.items() for key in keys.split() if key in known}
    given |= {key: value for key, value in MEANINGS.items() if key in known}
    if "kv_lora_rank" in known:  # latent attention: a key a head
        given["num_key_value_heads"] = given["num_attention_heads"]
    if "layer_types" in known and "layer_types" not in more:  # of the real one, each sort of layer once
        kinds = list(dict.fromkeys(kind().layer_types or ()))
        given |= {"layer_types": kinds * (1 + (len(kinds) == 1)), "num_hidden_layers": max(2, len(kinds))} if kinds else {}
    for part, sort in kind.sub_configs.items():
        own = sort if dataclasses.is_dataclass(sort) else type(getattr(kind(), part, None))
        if dataclasses.is_dataclass(own) and part in known:
            given[part] = tiny_config(own).to_dict()
    config = kind(**given | more)
    for key in ("initializer_range", "init_std"):
        if hasattr(config, key):
            setattr(config, key, 0.3)
    return config


def make(name: str) -> Any:
    """A tiny random model of that type, with PyTorch's attention where it takes it.

    Raises whatever transformers says against it, and ValueError for one that is not tiny.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config, attention = tiny_config(CONFIG_MAPPING[name.split()[0]], name), "sdpa"
    with torch.device("meta"):
        try:
            size = AutoModelForCausalLM.from_config(config, attn_implementation=attention).num_parameters()
        except ValueError:
            attention = "eager"
            size = AutoModelForCausalLM.from_config(config, attn_implementation=attention).num_parameters()
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size:,} parameters where all known sizes are small")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval().requires_grad_(False)


@dataclasses.dataclass
class Finding:
    """What became of one architecture. The reasons are None where there is nothing to say against it."""

    name: str
    not_made: str | None = None
    no_chains: str | None = None
    no_trees: str | None = None
    eager: bool = False


def examine(name: str) -> Finding:
    """Make a model of that type, probe it as a run does, and play rounds of chains and of trees on it."""
    try:
        module = make(name)
    except Exception as error:  # whatever transformers, or a package that it would need, says
        return Finding(name, not_made=one_line(error))
    eager = module.config.get_text_config(decoder=True)._attn_implementation == "eager"
    try:
        model = Model.wrap(module)
        probe_rollback(model, "target", name)
    except ValueError as error:
        refusal = str(error).partition("refused: ")[2] if isinstance(error, ConfigError) else str(error)
        return Finding(name, no_chains=refusal, eager=eager)
    return Finding(name, None, fault(model, ROUNDS), model.tree_refusal or fault(model, BRANCHES), eager)


def fault(model: Model, rounds: Rounds) -> str | None:
    """What differs from fresh forwards when these rounds are played; None for nothing."""
    session, text, pending = open_target(model), list(PROMPT), 7
    session.start(128)
    errors = [difference(session.prefill(text).logits[-1], fresh(model, text))]
    session.pending = pending
    for number, (parents, path) in enumerate(rounds):
        nodes = [(13 * number + 29 * i + 3) % 58 + 5 for i in range(len(parents))]
        tree = DraftTree(nodes, None if list(parents) == list(CHAIN[: len(parents)]) else list(parents))
        logits = session.forward(tree).logits
        for row in range(1 + len(nodes)):
            branch, node = list[int](), row - 1
            while node >= 0:
                branch, node = [nodes[node], *branch], parents[node]
            errors.append(difference(logits[row], fresh(model, [*text, pending, *branch])))
        kept = [nodes[node] for node in path]
        session.commit(Verdict(path, (*kept, 5 + number)))
        text, pending = [*text, pending, *kept], 5 + number
    moved = difference(fresh(model, [*text[:-3], 69 - text[-3], *text[-2:]]), fresh(model, text))
    if moved < 10 * TOLERANCE:
        return "its logits hardly depend on the text: nothing is shown"
    return None if max(errors) <= TOLERANCE else f"logits off by {max(errors):.2g} of the largest"


def fresh(model: Model, ids: Sequence[int]) -> torch.Tensor:
    """The logits [vocab] behind a text, in one forward without a cache."""
    with torch.inference_mode():
        return model.module(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1, : model.vocab_size]


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, in units of the largest logit."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


# ------------------------------------------------------------------------------------------------------------------- the page
HEAD = """# Architectures

What becomes of each architecture that transformers {version} has a causal language model for: made as a tiny random model, its
windows six positions long, probed as a run does, and asked for chains of drafts, rollbacks and trees, whose logits must be
those of fresh forwards to {tolerance:g} of the largest. Written by `python -m specbench.check.architectures`; a test keeps it
true.

Rotary embeddings that depend on the length of the text (`dynamic`, `longrope`) are exact, too: each row gets the frequencies of
its own position, as in autoregressive decoding. Phi-3 and its kin ({recomputed}) are exact on either side of
their original context, and refused where prompt and output cross it, since `generate` computes the whole text anew there.
"""


def page(findings: Iterable[Finding]) -> str:
    """docs/architectures.md, whole."""
    import transformers

    from specbench.engine.rotary import RECOMPUTED

    found = sorted(findings, key=lambda one: one.name)
    made = [one for one in found if one.not_made is None]
    runs = [one for one in made if one.no_chains is None]
    trees = [one.name for one in runs if one.no_trees is None]
    eager = [one.name for one in runs if one.eager]
    parts = [HEAD.format(version=transformers.__version__, tolerance=TOLERANCE, recomputed=", ".join(RECOMPUTED))]
    parts.append(f"## Chains and trees: {len(trees)}\n\n{wrapped(trees)}\n")
    for title, reasons in (
        ("Chains", {one.name: one.no_trees for one in runs if one.no_trees}),
        ("Refused", {one.name: one.no_chains for one in made if one.no_chains}),
        ("Not made here", {one.name: one.not_made for one in found if one.not_made}),
    ):
        by_reason: dict[str, list[str]] = {}
        for name, reason in reasons.items():
            by_reason.setdefault(str(reason).partition(" (logits off")[0].replace("|", "\\|"), []).append(name)
        rows = [f"| {', '.join(same)} | {reason} |" for reason, same in sorted(by_reason.items(), key=lambda item: item[1])]
        parts.append(f"## {title}: {len(reasons)}\n\n| architecture | why |\n|---|---|\n" + "\n".join(rows) + "\n")
    parts.append(f"## `engine.attention=eager`: {len(eager)}\n\nOf those that run, these do not take PyTorch's attention:\n")
    parts.append(f"{wrapped(eager)}\n")
    return "\n".join(parts)


def wrapped(words: Sequence[str]) -> str:
    import textwrap

    return textwrap.fill(", ".join(words) + ".", 124, break_on_hyphens=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or examine the architectures that are named."""
    parser = argparse.ArgumentParser(prog="python -m specbench.check.architectures", description=main.__doc__)
    parser.add_argument("name", nargs="*", choices=[[], *names()], metavar="architecture")
    parser.add_argument("--out", default=str(PAGE), help="the page (docs/architectures.md of the checkout)")
    options = parser.parse_args(arguments)
    findings = examine_all(options.name or names())
    if options.name:
        for one in findings:
            say(f"{one.name}: {one.not_made or one.no_chains or one.no_trees or 'chains and trees'}")
    else:
        Path(options.out).write_text(page(findings))
        say(f"{options.out}: {len(findings)} architectures")
    return 0


def examine_all(wanted: Iterable[str]) -> list[Finding]:
    """All of them, without what transformers says beside it."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [examine(name) for name in wanted]
    finally:
        transformers_logging.set_verbosity(level)


if __name__ == "__main__":
    sys.exit(main())

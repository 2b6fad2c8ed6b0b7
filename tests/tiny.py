"""Tiny random models of several architectures, a tiny tokenizer, and what is needed to decode with them.

The weights are drawn with a wide spread, so that logits differ by units and not by thousandths: a wrong position, mask or
cache row then moves an argmax, and near-ties are rare.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from specbench.config.specs import ModelSpec, PairSpec
from specbench.engine.model import Model
from specbench.engine.request import Outcome, Request
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw, noise_key
from specbench.method import Method

VOCAB = 64
WINDOW = 6  # of the sliding layers: shorter than the sequences of the tests
ARCHITECTURES = ("llama", "qwen3", "gpt2", "gpt_neox", "mistral", "gemma3")
WITH_SLIDING_LAYERS = ("mistral", "gemma3")


def config(architecture: str, vocab_size: int = VOCAB, hidden: int = 32, layers: int = 2) -> Any:
    """A transformers configuration of that architecture, as small as it goes."""
    heads = 2
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "initializer_range": 0.35,
    }
    grouped: dict[str, Any] = {**common, "num_key_value_heads": 1, "head_dim": hidden // heads, "tie_word_embeddings": False}
    if architecture == "llama":
        return LlamaConfig(**grouped)
    if architecture == "qwen3":
        return Qwen3Config(**grouped)
    if architecture == "mistral":
        return MistralConfig(**grouped, sliding_window=WINDOW)
    if architecture == "gpt_neox":
        return GPTNeoXConfig(**common)
    if architecture == "gemma3":
        types = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(layers)]
        return Gemma3TextConfig(**grouped, sliding_window=WINDOW, layer_types=types, query_pre_attn_scalar=hidden // heads)
    if architecture == "gpt2":
        return GPT2Config(
            vocab_size=vocab_size,
            n_embd=hidden,
            n_layer=layers,
            n_head=heads,
            n_positions=256,
            bos_token_id=None,
            eos_token_id=None,
            initializer_range=0.35,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    raise ValueError(f"architecture={architecture!r}: known are {', '.join(ARCHITECTURES)}")


def module(
    architecture: str = "llama",
    *,
    seed: int = 0,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    **sizes: int,
) -> Any:
    """A randomly initialised causal language model in eval mode; the same seed gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(config(architecture, **sizes), attn_implementation=attention, dtype=dtype)
    return made.eval().requires_grad_(False)


def model(architecture: str = "llama", *, common_vocabulary: int | None = None, **options: Any) -> Model:
    """The same, as sessions take it."""
    return Model.wrap(module(architecture, **options), common_vocabulary)


def noisy_copy(source: Any, noise: float, seed: int = 1) -> Any:
    """A copy of a module with every weight disturbed: a draft that agrees with its target often, not always."""
    made = type(source)(source.config).to(source.dtype)
    made.load_state_dict(source.state_dict())
    made.config._attn_implementation = source.config._attn_implementation
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in made.parameters():
            weight += noise * weight.std(unbiased=False) * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return made.eval().requires_grad_(False)


def tokenizer(vocab_size: int = VOCAB, swap: tuple[int, int] | None = None) -> PreTrainedTokenizerFast:
    """A byte-free character tokenizer with `vocab_size` ids; `swap` exchanges the meaning of two ids."""
    letters = [chr(code) for code in range(32, 127)] + ["\n"]
    names = ["<unk>", "<eos>", *letters, *(f"<extra_{i}>" for i in range(vocab_size))][:vocab_size]
    if swap is not None:
        names[swap[0]], names[swap[1]] = names[swap[1]], names[swap[0]]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<eos>")


def save(folder: Path, made: Any, words: PreTrainedTokenizerFast | None = None) -> Path:
    """A model folder as Hugging Face lays it out."""
    made.save_pretrained(folder)
    (words or tokenizer(made.config.vocab_size)).save_pretrained(folder)
    return folder


def spec(role: str = "target") -> ModelSpec:
    return ModelSpec(role, "tiny", "tiny", "float32", "cpu", None, "sdpa", False)


def runtime(
    target: Model,
    draft: Model | None = None,
    law: SamplingLaw | None = None,
    max_new_tokens: int = 24,
    eos_ids: Iterable[int] = (),
) -> Runtime:
    """What a method is opened with, around models that were made here."""
    draft_vocabulary = draft.vocab_size if draft is not None else None
    pair = PairSpec("tiny", spec(), spec("draft") if draft is not None else None, target.vocab_size, draft_vocabulary)
    return Runtime(pair, target, draft, law or SamplingLaw(), max_new_tokens, frozenset(eos_ids))


def request(around: Runtime, prompt_ids: Sequence[int], sample_id: str = "0", seed: int = 0) -> Request:
    key = noise_key(seed, sample_id, 0)
    return Request(sample_id, 0, tuple(prompt_ids), around.max_new_tokens, around.eos_ids, key)


def opened(method: Method, around: Runtime) -> Method:
    method.open(around)
    return method


def decode(method: Method, around: Runtime, prompt_ids: Sequence[int], **naming: Any) -> Outcome:
    """Open, decode one prompt, close."""
    try:
        return opened(method, around).decode(request(around, prompt_ids, **naming))
    finally:
        method.close()


def prompt(length: int, seed: int = 0, vocab_size: int = VOCAB) -> list[int]:
    """Random ids."""
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def plain_forward(made: Any, ids: Sequence[int], vocab_size: int | None = None) -> torch.Tensor:
    """Logits [n, vocab] of one fresh forward without a cache: what every session must reproduce."""
    with torch.inference_mode():
        return made(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, :, :vocab_size]


class Bare(torch.nn.Module):
    """One attention layer in a dozen torch calls: some ten times faster than the smallest model of transformers.

    For tests of laws, which need thousands of samples. It takes cache, mask and positions as transformers' models do.
    """

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, vocab_size: int, *, seed: int, hidden: int = 8, spread: float = 1.0, num_positions: int = 32):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocab_size, num_hidden_layers=1, max_position_embeddings=num_positions)
        self.config.get_text_config = lambda decoder: self.config
        generator = torch.Generator().manual_seed(seed)

        def draw(rows: int, columns: int, scale: float) -> torch.nn.Parameter:
            weight = torch.randn((rows, columns), generator=generator) / rows**0.5 * scale
            return torch.nn.Parameter(weight, requires_grad=False)

        self.embedding, self.places = draw(vocab_size, hidden, vocab_size**0.5), draw(num_positions, hidden, num_positions**0.5)
        self.projection, self.head = draw(hidden, 3 * hidden, 1.0), draw(hidden, vocab_size, spread)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
    ) -> SimpleNamespace:
        rows = input_ids.shape[1]
        if position_ids is None:
            position_ids = torch.arange(rows).unsqueeze(0)
        entering = x = self.embedding[input_ids] + self.places[position_ids]
        query, key, value = (x @ self.projection).unsqueeze(1).chunk(3, dim=-1)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, 0)
        if attention_mask is None and rows > 1:
            attention_mask = torch.full((rows, rows), -torch.inf).triu_(1)
        x = x + torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask).squeeze(1)
        hidden_states = (entering, x) if output_hidden_states else None
        return SimpleNamespace(logits=x[:, -logits_to_keep:] @ self.head, hidden_states=hidden_states)

    def disturbed(self, noise: float, seed: int = 1) -> Bare:
        """A copy with every weight disturbed: a draft that agrees often, not always."""
        made, generator = copy.deepcopy(self), torch.Generator().manual_seed(seed)
        for weight in made.parameters():
            weight += noise * weight.std() * torch.randn(weight.shape, generator=generator)
        return made


def bare(vocab_size: int, *, seed: int, spread: float = 1.0) -> Model:
    return Model.wrap(Bare(vocab_size, seed=seed, spread=spread))


def bare_pair(vocab_size: int, *, seed: int = 0, noise: float = 0.15) -> tuple[Model, Model]:
    """Target and draft, with positions for prompts of 20 tokens and what the checks have them continued by."""
    target = Bare(vocab_size, seed=seed, spread=2.0, num_positions=96)
    return Model.wrap(target), Model.wrap(target.disturbed(noise))

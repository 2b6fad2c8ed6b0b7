"""What forward.cpp knows of a model: its weights, packed, and its shape; and which models it computes right."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from specbench.engine.backends.native.build import library
from specbench.engine.backends.native.packing import BYTES, LANES, UNIT, pack
from specbench.engine.backends.native.pages import Pages
from specbench.engine.masks import FULL, SLIDING, MaskPlan
from specbench.engine.reduced import ReducedHead

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "granite")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # the others change with the length of the text
_whole, _pointer, _real = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float


class Matrix(ctypes.Structure):
    _fields_ = [("data", _pointer), ("bias", _pointer), ("inputs", _whole), ("outputs", _whole), ("kind", _whole)]


class Layer(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("norm_1", "norm_2", "norm_q", "norm_k")),
        *((name, Matrix) for name in ("qkv", "out", "gate_up", "down")),
        ("window", _whole),
    ]


class Shape(ctypes.Structure):
    """`Model` in forward.cpp."""

    _fields_ = [
        *((name, _whole) for name in ("layers", "width", "inner", "heads", "kv_heads", "head_dim")),
        *((name, _real) for name in ("eps", "scale", "embed_factor", "residual_factor", "logit_divisor")),
        *((name, _pointer) for name in ("embed", "norm", "layer")),
        ("head", Matrix),
    ]


class Call(ctypes.Structure):
    """`Forward` in forward.cpp."""

    _fields_ = [
        *((name, _whole) for name in ("rows", "past", "trunk", "threads", "capacity")),
        *((name, _pointer) for name in ("ids", "states", "parents", "depths", "layers")),
        ("num_layers", _whole),
        *((name, _pointer) for name in ("keys", "values", "cosines", "sines", "taps", "last", "logits")),
        ("first_logit", _whole),
        ("kept", _pointer),
        *((name, _whole) for name in ("num_kept", "kept_from")),
        ("firsts", _pointer),
        ("num_ranked", _whole),
    ]


def refusal(config: Any, dtype: str = "float32", device: str = "cpu") -> str | None:
    """Why a model of this transformers configuration is not computed here; None if it is."""
    if device != "cpu":
        return f"it computes on a CPU, not on {device}"
    if dtype != "float32":
        return f"it computes in float32, not in {dtype}"
    text = config.get_text_config(decoder=True)
    if text.model_type not in MODEL_TYPES:
        return f"it knows models of type {', '.join(MODEL_TYPES)}, not {text.model_type}"
    if getattr(config, "quantization_config", None) is not None:
        return "the weights are quantised"
    if text.hidden_act not in ("silu", "swish"):
        return f"it knows the activation silu, not {text.hidden_act}"
    rope = getattr(text, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        return f"it knows rotary positions of type {', '.join(ROPE_TYPES)}, not {kind}"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "a part of each head alone is turned by its position"
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return "the heads' width is odd" if head_dim % 2 else None


class NativeWeights:
    """A module's weights as forward.cpp reads them, each matrix in the smallest form that gives its numbers back (`packing`).

    instructions: an instruction set (`build.INSTRUCTION_SETS`); None: this processor's widest. smaller: false keeps all in
    float32. Norms and embedding stay the module's own. Raises CannotBuildError.
    """

    def __init__(self, module: Any, plan: MaskPlan, instructions: str | None = None, smaller: bool = True):
        self.smaller = smaller
        self.library = library(instructions)
        sizes = [ctypes.sizeof(kind) for kind in (Matrix, Layer, Shape, Call)]
        assert sizes == [self.library.sb_sizes(n) for n in range(4)], "forward.cpp means other structures"
        self.plan = plan
        self.pack(module)

    def pack(self, module: Any) -> None:
        """Take over the weights of a module, again after they have changed."""
        config = module.config.get_text_config(decoder=True)
        why = refusal(module.config, str(module.dtype).removeprefix("torch."), str(module.device))
        assert why is None, why
        self._kept: list[Any] = []
        self._pages = Pages()
        self._rotary, self._tables = module.model.rotary_emb, (torch.empty(0), torch.empty(0))
        shape = Shape()
        shape.layers, shape.width, shape.inner = config.num_hidden_layers, config.hidden_size, config.intermediate_size
        shape.heads, shape.kv_heads = config.num_attention_heads, config.num_key_value_heads
        shape.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape.eps = config.rms_norm_eps
        shape.scale, shape.embed_factor, shape.residual_factor, shape.logit_divisor = shape.head_dim**-0.5, 1.0, 1.0, 1.0
        if config.model_type == "granite":  # another model's forward reads none of these, whatever its file says
            shape.scale, shape.embed_factor = config.attention_multiplier, config.embedding_multiplier
            shape.residual_factor, shape.logit_divisor = config.residual_multiplier, config.logits_scaling
        shape.embed, shape.norm = self._own(module.model.embed_tokens.weight), self._own(module.model.norm.weight)
        self.reduced = module.lm_head if isinstance(module.lm_head, ReducedHead) else None
        self.reduced_ids = torch.empty(0, dtype=torch.long) if self.reduced is None else self.reduced.ids
        self.reduced_at = self.reduced_ids.data_ptr()
        shape.head = self._matrix([module.lm_head if self.reduced is None else self.reduced.linear])
        layers = (Layer * shape.layers)(*(self._layer(layer, n, config) for n, layer in enumerate(module.model.layers)))
        self._kept.append(layers)
        shape.layer = ctypes.addressof(layers)
        self.shape, self.reference = shape, ctypes.addressof(shape)
        self.outputs = -(-int(shape.head.outputs) // LANES) * LANES

    def _layer(self, module: Any, number: int, config: Any) -> Layer:
        attention, mlp = module.self_attn, module.mlp
        made = Layer()
        made.norm_1 = self._own(module.input_layernorm.weight)
        made.norm_2 = self._own(module.post_attention_layernorm.weight)
        if hasattr(attention, "q_norm"):
            made.norm_q, made.norm_k = self._own(attention.q_norm.weight), self._own(attention.k_norm.weight)
        made.qkv = self._matrix([attention.q_proj, attention.k_proj, attention.v_proj])
        made.out, made.down = self._matrix([attention.o_proj]), self._matrix([mlp.down_proj])
        made.gate_up = self._matrix([mlp.gate_proj, mlp.up_proj], beside=True)
        kinds = getattr(config, "layer_types", None) or self.plan.layer_types * config.num_hidden_layers
        made.window = self.plan.window if self.plan.window is not None and kinds[number] == SLIDING else 0
        assert kinds[number] in (FULL, SLIDING), kinds[number]
        return made

    def _own(self, weight: Tensor) -> int:
        kept = weight.detach()
        if kept.dtype != torch.float32 or not kept.is_contiguous():
            kept = kept.float().contiguous()
        self._kept.append(kept)
        return kept.data_ptr()

    def packed(self, linear: Any) -> tuple[Matrix, list[Tensor]]:
        """One more layer, and what keeps its numbers in memory."""
        kept: list[Tensor] = []
        return self._matrix([linear], kept=kept), kept

    def _matrix(self, linears: Iterable[Any], beside: bool = False, kept: list[Any] | None = None) -> Matrix:
        """Linear layers as one matrix. beside: 32 outputs of the first and 32 of the second in turn, then zeros."""
        linears, all_kept = list(linears), self._kept if kept is None else kept
        weight = _rows([linear.weight.detach() for linear in linears], beside)
        biases = [linear.bias for linear in linears]
        made = Matrix(inputs=weight.shape[1], outputs=weight.shape[0])
        if any(bias is not None for bias in biases):
            values = [linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias for linear in linears]
            bias = _padded(_rows([value.detach()[:, None] for value in values], beside), LANES).reshape(-1).contiguous()
            made.bias = bias.data_ptr()
            all_kept.append(bias)
        made.kind, packed = pack(_padded(weight, LANES), self.smaller)
        all_kept.append(self._pages.copy(packed))
        made.data = all_kept[-1].data_ptr()
        return made

    @property
    def nbytes(self) -> int:
        """Bytes that packing took, beside the module's own."""
        return sum(kept.nbytes for kept in self._kept if isinstance(kept, Tensor))

    @property
    def read_bytes(self) -> int:
        """Bytes of the matrices, each of which a forward reads once."""
        layers = ctypes.cast(self.shape.layer, ctypes.POINTER(Layer))
        matrices = [self.shape.head]
        for number in range(self.shape.layers):
            layer = layers[number]
            matrices += [layer.qkv, layer.out, layer.gate_up, layer.down]
        return int(sum(matrix.inputs * matrix.outputs * BYTES[matrix.kind] for matrix in matrices))

    def tables(self, positions: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [at least `positions`, head_dim / 2], as transformers computes them."""
        if len(self._tables[0]) < positions:
            half = self.shape.head_dim // 2
            with torch.inference_mode():
                found = self._rotary(torch.empty(1), torch.arange(max(512, 2 * positions))[None])
            cosines, sines = (part[0, :, :half].float().contiguous() for part in found)
            self._tables = (cosines, sines)
        return self._tables


def _rows(parts: list[Tensor], beside: bool) -> Tensor:
    if not beside:
        return torch.cat(parts)
    return torch.stack([_padded(part, UNIT // 2).unflatten(0, (-1, UNIT // 2)) for part in parts], dim=1).flatten(0, 2)


def _padded(weight: Tensor, to: int) -> Tensor:
    return torch.nn.functional.pad(weight, (0, 0, 0, -len(weight) % to))

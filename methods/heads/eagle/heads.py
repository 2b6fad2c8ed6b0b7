"""The trained part of EAGLE: one decoder layer that continues the target's features (Li et al. 2401.15077, section 3).

Row t reads the target's feature h[t] (its LM head's input after token t) beside the embedding of the *next* token t + 1, which
takes away the uncertainty that the feature alone leaves, attends to the rows before it, and predicts h[t + 1]. The target's own
LM head turns that into a guess at token t + 2. Further down its own predictions take the features' place.

Training is the paper's regression and classification, with uniform noise on the features; beyond it, `steps` > 1 unrolls the
layer on its own predictions as drafting does (the training-time test of EAGLE-3, Li et al. 2503.01840): without, a depth-3 row
meets an input in use that it never met in training. Two norms on the inputs (as in EAGLE-3) and one on the output, which starts
as the target's last norm, make a small layer learn in few tokens; the paper has none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from specbench.config.options import ConfigError
from specbench.parts.heads.base import Heads, TargetParts, shifted

EPSILON = 1e-6


class Layer(nn.Module):
    """A pre-norm decoder layer (attention with rotary positions, gated feed-forward) in separate matrices, for Muon."""

    def __init__(self, width: int, feed_forward: int):
        super().__init__()
        self.attention_norm, self.feed_forward_norm = nn.RMSNorm(width, EPSILON), nn.RMSNorm(width, EPSILON)
        self.query, self.key, self.value, self.attention_out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, feed_forward, bias=False) for _ in range(2))
        self.down = nn.Linear(feed_forward, width, bias=False)


class EagleHeads(Heads):
    """attention_heads, feed_forward, rope_theta: of the layer; null takes the target's.

    feature_weight, token_weight: of the smooth L1 distance of the features (in units of their root mean square, mean over the
    width) and of KL(target || draft) in nats. The paper weighs 1 : 0.1 for features of thousands of numbers; at a few hundred
    the distance says less about tokens and the default is turned round. noise: width of the uniform noise on the features that
    training feeds, on each side, in the same units. steps: depths unrolled in training, each weighing `step_decay` times the
    last one. depths: that calibration judges. Raises ConfigError (heads.<option>) for values out of range.
    """

    family = "eagle"

    def __init__(
        self,
        target: TargetParts,
        *,
        attention_heads: int | None = None,
        feed_forward: int | None = None,
        rope_theta: float | None = None,
        feature_weight: float = 0.5,
        token_weight: float = 1.0,
        noise: float = 0.1,
        steps: int = 3,
        step_decay: float = 0.8,
        depths: int = 6,
    ):
        super().__init__(target)
        config, width = target.config, target.width
        if attention_heads is None:
            attention_heads = _heads_that_fit(getattr(config, "num_attention_heads", 1), width)
        if feed_forward is None:
            feed_forward = getattr(config, "intermediate_size", None) or 4 * width
        if rope_theta is None:
            rope_theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10_000.0)
        self.options = {
            "attention_heads": attention_heads,
            "feed_forward": feed_forward,
            "rope_theta": rope_theta,
            "feature_weight": feature_weight,
            "token_weight": token_weight,
            "noise": noise,
            "steps": steps,
            "step_decay": step_decay,
            "depths": depths,
        }
        _check(self.options, width)
        self.attention_heads, self.head_width, self.rope_theta = attention_heads, width // attention_heads, float(rope_theta)
        weight: Any = target.embedding.weight
        embedding_width = int(weight.shape[1])
        self.token_norm, self.feature_norm = nn.RMSNorm(embedding_width, EPSILON), nn.RMSNorm(width, EPSILON)
        self.layers = nn.ModuleDict({"join": nn.Linear(embedding_width + width, width, bias=False)})
        self.layers["decoder"] = Layer(width, feed_forward)
        gain, bias = _norm_of(target)
        self.out_gain, self.out_bias = nn.Parameter(gain), nn.Parameter(bias)

    @property
    def max_depth(self) -> int:
        return int(self.options["depths"])

    @property
    def layer(self) -> Layer:
        return self.layers["decoder"]  # type: ignore[return-value]

    def join(self, features: Tensor, ids: Tensor) -> Tensor:
        """The layer's input [..., width] from features [..., width] and the ids [...] that follow them."""
        tokens = self.target.embedding(ids).to(features.device, features.dtype)
        joined = self.layers["join"](torch.cat([self.token_norm(tokens), self.feature_norm(features)], dim=-1))
        return joined.to(features.dtype)  # under autocast the sums of the layer stay as precise as what it was fed

    def finish(self, inner: Tensor, attended: Tensor) -> Tensor:
        """The predicted features, from the layer's input and what attention brought, both [..., width]."""
        layer = self.layer
        inner = inner + layer.attention_out(attended)
        normed = layer.feed_forward_norm(inner)
        inner = inner + layer.down(functional.silu(layer.gate(normed)) * layer.up(normed))
        return functional.rms_norm(inner, inner.shape[-1:], eps=EPSILON) * self.out_gain + self.out_bias

    def loss(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """Weighted mean over the unrolled steps; a row is judged where the text has the token that it is fed.

        ids [rows, length], -1 behind the text; hidden [rows, length, width]. See the class for the terms.
        """
        options = self.options
        hidden = hidden.to(self.out_gain.dtype)
        wanted, judged = hidden[:, 1:], ids[:, 1:] >= 0
        scale = hidden[ids >= 0].square().mean().sqrt()
        with torch.no_grad():
            log_p = self.target.guess(wanted).float().log_softmax(-1)
        total, weights = hidden.new_zeros(()), 0.0
        noise = options["noise"] * scale if self.training else 0.0
        for step, features in enumerate(self.unrolled(ids, hidden, options["steps"], noise)):
            given = features[:, :-1]
            weight = options["step_decay"] ** step
            mask = judged & (torch.arange(judged.shape[1], device=ids.device) >= step)
            count = mask.sum().clamp(min=1)
            distance = functional.smooth_l1_loss(given.float() / scale, wanted.float() / scale, reduction="none").mean(-1)
            log_q = self.target.guess(given).float().log_softmax(-1)
            divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
            each = options["feature_weight"] * distance + options["token_weight"] * divergence
            total = total + weight * torch.where(mask, each, 0.0).sum() / count
            weights += weight
        return total / weights

    def ranks(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """See the base class; depth k is drafted by k - 1 steps on the layer's own predictions, below the text's tokens."""
        token = shifted(ids, 2)  # row t guesses token t + 2
        ranks = []
        for step, features in enumerate(self.unrolled(ids, hidden.to(self.out_gain.dtype), self.max_depth)):
            # The row at depth k = step + 1 stands `step` places behind the last true feature.
            ranks.append(shifted(self.target.rank(self.target.guess(features), token), step))
        return torch.stack(ranks)

    def unrolled(self, ids: Tensor, hidden: Tensor, steps: int, noise: Tensor | float = 0.0) -> list[Tensor]:
        """Predicted features of `steps` steps, each [rows, length, width]; entry t predicts h[t + 1].

        Step 0 reads the true h[t]; step j reads step j - 1's prediction of it and attends to true rows up to t - j and, behind
        them, to one row of each step 1 to j, as drafting from h[t - j] would. Rows below j of step j mean nothing.
        """
        rows, length, width = hidden.shape
        fed = functional.pad(ids[:, 1:], (0, 1), value=0).clamp(min=0)
        positions = torch.arange(length, device=ids.device)
        rotation = rotary(positions, self.head_width, self.rope_theta, hidden.dtype)
        features = hidden if not isinstance(noise, Tensor) else hidden + (2 * torch.rand_like(hidden) - 1) * noise
        keys: list[Tensor] = []
        values: list[Tensor] = []
        outputs: list[Tensor] = []
        for step in range(steps):
            inner = self.join(features, fed)
            query, key, value = self._heads_of(inner, rotation)
            keys.append(key)
            values.append(value)
            attended = _attend(query, keys, values, step).transpose(1, 2).reshape(rows, length, width)
            outputs.append(self.finish(inner, attended))
            features = functional.pad(outputs[-1][:, :-1], (0, 0, 1, 0))
        return outputs

    def _heads_of(self, inner: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        layer = self.layer
        normed = layer.attention_norm(inner)
        query, key, value = (
            projection(normed).unflatten(-1, (self.attention_heads, self.head_width)).transpose(1, 2)
            for projection in (layer.query, layer.key, layer.value)
        )
        return rotate(query, *rotation), rotate(key, *rotation), value


def _attend(query: Tensor, keys: list[Tensor], values: list[Tensor], step: int) -> Tensor:
    """[rows, heads, length, head width]: step 0 is causal; step j sees step 0 up to t - j and one row of each step 1 to j."""
    if step == 0:
        return functional.scaled_dot_product_attention(query, keys[0], values[0], is_causal=True)
    length = query.shape[2]
    # Row t of step j stands on rows t - j + i of the steps i = 1 to j.
    own_keys = [_delayed(key, step - i) for i, key in enumerate(keys) if i > 0]
    own_values = [_delayed(value, step - i) for i, value in enumerate(values) if i > 0]
    true = query @ keys[0].transpose(2, 3)
    hidden = torch.ones(length, length, dtype=torch.bool, device=query.device).triu_(1 - step)
    own = torch.stack([(query * key).sum(-1) for key in own_keys], dim=-1)
    scores = torch.cat([true.masked_fill(hidden, float("-inf")), own], dim=-1) * query.shape[-1] ** -0.5
    weights = scores.float().softmax(-1).to(query.dtype)
    attended = weights[..., :length] @ values[0]
    for i, value in enumerate(own_values):
        attended = attended + weights[..., length + i, None] * value
    return attended


def _delayed(rows: Tensor, by: int) -> Tensor:
    """rows [..., length, width] moved `by` places to the right."""
    return functional.pad(rows[:, :, : rows.shape[2] - by], (0, 0, by, 0)) if by else rows


def rotary(positions: Tensor, head_width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [n, head_width / 2] of rotary positions (Su et al. 2021)."""
    rates = theta ** (-torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32) / head_width)
    angles = positions.float()[:, None] * rates
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """x [..., n, head_width] turned by its positions; the halves of a head are the two coordinates."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def _heads_that_fit(wanted: int, width: int) -> int:
    """The largest number of attention heads up to `wanted` that leaves heads of an even width."""
    return next((n for n in range(wanted, 0, -1) if width % n == 0 and (width // n) % 2 == 0), 1)


def _norm_of(target: TargetParts) -> tuple[Tensor, Tensor]:
    """Gain and bias of the target's last norm, [width] each, or ones and zeros where there is none.

    Read off what it does to +1, -1, +1 ...: their mean is 0 and their mean square 1, so that LayerNorm, RMSNorm and Gemma's
    (1 + weight) agree.
    """
    signs = torch.ones(target.width, device=target.device, dtype=target.dtype)
    signs[1::2] = -1
    if target.norm is None:
        return torch.ones_like(signs), torch.zeros_like(signs)
    with torch.no_grad():
        plus, minus = target.norm(signs[None])[0].to(signs.device), target.norm(-signs[None])[0].to(signs.device)
    return (plus - minus) / 2 * signs, (plus + minus) / 2


def _check(options: dict[str, Any], width: int) -> None:
    for name in ("attention_heads", "feed_forward", "steps", "depths"):
        if not isinstance(options[name], int) or isinstance(options[name], bool) or options[name] < 1:
            raise ConfigError(f"heads.{name}", options[name], "give a whole number from 1 up")
    if width % options["attention_heads"] or width // options["attention_heads"] % 2:
        raise ConfigError("heads.attention_heads", options["attention_heads"], f"must cut {width} into heads of an even width")
    for name in ("feature_weight", "token_weight", "noise", "step_decay", "rope_theta"):
        value = options[name]
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0.0 <= value < float("inf"):
            raise ConfigError(f"heads.{name}", value, "give a number from 0 up")
    if options["feature_weight"] + options["token_weight"] == 0:
        raise ConfigError("heads.token_weight", options["token_weight"], "both weights are 0: nothing to learn")

"""EAGLE's layer at work: a preallocated cache, rows appended to the text or below it, no more torch calls than needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from specbench.methods.heads.eagle.heads import EPSILON, EagleHeads, rotary


class FeatureDraft:
    """Continues features. Committed rows stand at positions 0 to `length` - 1 and were computed from the target's own features;
    rows of a tree stand behind them until `rollback`.

    vocab_size: ids that may be drafted. num_forwards counts calls of `extend` and `descend`.
    """

    def __init__(self, heads: EagleHeads, vocab_size: int):
        layer = heads.layer
        self.heads, self.vocab_size = heads, vocab_size
        self.num_heads, self.head_width = heads.attention_heads, heads.head_width
        with torch.inference_mode():
            self._qkv = torch.cat([layer.query.weight, layer.key.weight, layer.value.weight])
        self.device, self.dtype = self._qkv.device, self._qkv.dtype
        self._ids_device = heads.target.embedding.weight.device
        self.length = self.num_forwards = 0
        self._capacity = 0
        self.keys = self.values = torch.zeros(0, device=self.device)  # [heads, capacity, head width]
        self._no_branch = self._branches = torch.zeros(1, 0, device=self.device, dtype=self.dtype)
        self._depth = 0  # of the last level below the text
        self._is_chain = True

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return self.keys.nbytes + self.values.nbytes

    @torch.inference_mode()
    def start(self, capacity: int) -> None:
        """A new sequence of at most `capacity` rows, those of a tree included."""
        self.length = self.num_forwards = 0
        if capacity <= self._capacity:
            return
        self._capacity = capacity
        self.keys = torch.empty((self.num_heads, capacity, self.head_width), device=self.device, dtype=self.dtype)
        self.values = torch.empty_like(self.keys)
        positions = torch.arange(capacity, device=self.device)
        cosine, sine = rotary(positions, self.head_width, self.heads.rope_theta, self.dtype)
        self._cosine, self._sine = cosine[:, None], sine[:, None]  # [capacity, 1, head width / 2]
        self._visible = torch.zeros((1, capacity), device=self.device, dtype=self.dtype)

    @torch.inference_mode()
    def extend(self, features: Tensor, ids: Sequence[int]) -> Tensor:
        """Append committed rows: the target's features [n or more, width] and the n tokens that follow the first of them.

        Returns the last row's prediction [1, width]. That row sees every other, and of those only keys and values are wanted
        (there is one layer): no mask, and attention linear in the length of a prompt.
        """
        inner, query = self._append(features[: len(ids)], ids, self.length, self.length + len(ids))
        self._branches, self._depth, self._is_chain = self._no_branch, 0, True
        return self._attend(inner[-1:], query[:, -1:], None)

    @torch.inference_mode()
    def descend(self, features: Tensor, ids: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Append the next level of a tree, w nodes: predicted features [w, width] of their parents, their own tokens, and which
        row of the level above each hangs on (of the first level: whatever, the text). Returns predictions [w, width].
        """
        start = self.length - self._branches.shape[1]
        position = start + self._depth
        inner, query = self._append(features, ids, position, position + 1)
        self._depth += 1
        own = torch.full((len(ids), len(ids)), torch.finfo(self.dtype).min, device=self.device, dtype=self.dtype)
        above = self._branches.expand(len(ids), -1) if self._branches.shape[0] == 1 else self._branches[list(parents)]
        self._branches = torch.cat([above, own.fill_diagonal_(0.0)], dim=1)
        self._is_chain &= len(ids) == 1
        if self._is_chain:
            return self._attend(inner, query, None)
        return self._attend(inner, query, torch.cat([self._visible[:, :start].expand(len(ids), -1), self._branches], dim=1))

    def rollback(self, length: int) -> None:
        """Forget every row from `length` on."""
        assert 0 <= length <= self.length, f"rollback to {length} of {self.length}"
        self.length = length

    @torch.inference_mode()
    def logits(self, features: Tensor) -> Tensor:
        """[n, vocab_size] by the target's LM head."""
        return self.heads.target.whole(self.heads.target.guess(features))[:, : self.vocab_size]

    def _append(self, features: Tensor, ids: Sequence[int], begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Rows at rotary positions begin to end - 1 (a single one for all of a level): inner states [n, width], queries."""
        rows, past = len(ids), self.length
        assert past + rows <= self._capacity, f"draft cache of {self._capacity} rows asked for {past + rows}"
        self.num_forwards += 1
        inner = self.heads.join(features.to(self.device, self.dtype), torch.tensor(ids, device=self._ids_device))
        normed = functional.rms_norm(inner, inner.shape[-1:], self.heads.layer.attention_norm.weight, EPSILON)
        qkv = functional.linear(normed, self._qkv).view(rows, 3 * self.num_heads, self.head_width)
        first, second = qkv[:, : 2 * self.num_heads].chunk(2, dim=-1)
        cosine, sine = self._cosine[begin:end], self._sine[begin:end]
        turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).transpose(0, 1)
        self.length = past + rows
        self.keys[:, past : self.length] = turned[self.num_heads :]
        self.values[:, past : self.length] = qkv[:, 2 * self.num_heads :].transpose(0, 1)
        return inner, turned[: self.num_heads]

    def _attend(self, inner: Tensor, query: Tensor, mask: Tensor | None) -> Tensor:
        """Predictions [n, width] of rows whose keys and values are in the cache already; query [heads, n, head width]."""
        keys, values = self.keys[None, :, : self.length], self.values[None, :, : self.length]
        attended = functional.scaled_dot_product_attention(query[None], keys, values, attn_mask=mask)[0]
        return self.heads.finish(inner, attended.transpose(0, 1).reshape(inner.shape))

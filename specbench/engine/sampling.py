"""From logits to the warped distribution (temperature, top-k, top-p) to tokens, with keyed noise.

With temperature > 0 the target's token at a position is the argmax of its warped logits plus Gumbel noise that is a pure
function of (key, position, token id) (the Gumbel-max trick: Gumbel 1954; Maddison, Tarlow and Minka 2014). The key names a
sample, so that any method, in any interleaving, asks for the same noise at the same position and losslessness can be checked
token for token. The noise comes from a counter-based hash, not from a generator: it has no state, and a row is the same
whether it is computed alone or in a block.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specbench.config.options import ConfigError
from specbench.engine.narrow import narrow_rows
from specbench.engine.ranks import NO_LAW, best_natively

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads consecutive positions
_TOKEN_STEP = 0xD1342543DE82EF95  # spreads token ids; another step, so that no key makes position i and token j look alike
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9  # splitmix64's finaliser (Steele, Lea and Flood 2014, variant 13 by Stafford)
_MULTIPLIER_2 = 0x94D049BB133111EB
_MAX63 = (1 << 63) - 1
_UNIT = 2.0**-63
_BELOW_ONE = 1.0 - 2.0**-24  # the largest float32 below 1


@dataclass(frozen=True)
class SamplingLaw:
    """How a token follows from logits, the same for both arms and, in ratio-type rules, for target and draft.

    temperature 0 means greedy: the law is then a point mass on the argmax and top_k, top_p and seed have no effect.
    Raises ConfigError (key decoding.<field>) for values out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or not 0.0 <= self.temperature < math.inf:
            raise ConfigError("decoding.temperature", self.temperature, "give a finite number, 0 (greedy) or larger")
        if self.top_k is not None and (not _is_integer(self.top_k) or self.top_k < 1):
            raise ConfigError("decoding.top_k", self.top_k, "give a whole number from 1 up, or null for no limit")
        if self.top_p is not None and (not _is_number(self.top_p) or not 0.0 < self.top_p <= 1.0):
            raise ConfigError("decoding.top_p", self.top_p, "give a number above 0 and up to 1, or null for no limit")
        if not _is_integer(self.seed):
            raise ConfigError("decoding.seed", self.seed, "give a whole number")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def warp(self, logits: Tensor) -> Tensor:
        """Warped logits, shape as given ([..., V]), -inf for removed tokens; float32 (float64 stays float64).

        Temperature, then top-k, then top-p, as transformers' logits warpers apply them: top-k keeps ties with the k-th value,
        top-p removes the least likely tokens whose total is at most 1 - top_p and always keeps one. Under the greedy law
        everything but the argmax is removed.
        """
        if logits.dtype != torch.float64:
            logits = logits.float()
        if self.greedy:
            best = logits.argmax(dim=-1, keepdim=True)
            return torch.full_like(logits, -math.inf).scatter_(-1, best, logits.gather(-1, best))
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            smallest_kept = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < smallest_kept, -math.inf)
        if self.top_p is not None and self.top_p < 1.0:
            ascending, order = torch.sort(logits, dim=-1)
            removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1.0 - self.top_p
            removed[..., -1] = False
            logits = logits.masked_fill(torch.empty_like(removed).scatter_(-1, order, removed), -math.inf)
        return logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """The law itself: probabilities [..., V] after warping (a one-hot row under the greedy law).

        Raises ValueError for logits that make no law (NaN, infinity); costs one host read.
        """
        return shares(self.warp(logits))

    def scores(self, logits: Tensor, positions: Sequence[int], noise_key: int) -> Tensor:
        """What `choose` takes the best of, [n, V]: logits, or warped ones plus the keyed noise of each row's position."""
        if self.greedy:
            return logits
        return self.warp(logits) + keyed_gumbel(noise_key, positions, logits.shape[-1], logits.device)

    def choose(self, logits: Tensor, positions: Sequence[int], noise_key: int, rows: Sequence[int] | None = None) -> list[int]:
        """One token id per row of logits [n, V], or per one of `rows`; positions[i] is where the i-th token will stand.

        Costs one host read. A row's choice depends on its own logits, its position and the key, not on the other rows.
        Raises ValueError for logits that make no law (NaN, infinity).
        """
        assert logits.dim() == 2 and len(positions) == len(logits if rows is None else rows), "one position per row"
        scores = self.scores(logits if rows is None or self.greedy else logits[rows], positions, noise_key)
        rows = None if scores is not logits else rows
        # NaN counts as the largest: one in a row is what the row's argmax points at.
        if (found := best_natively(scores, 1, rows)) is not None:
            ids, (tokens, heights) = None, found
        elif scores.is_cpu and scores.dtype == torch.float32:
            few, ids = narrow_rows(scores)  # a greedy draft's
            table = few.detach().numpy()  # whose argmax is several times as fast as torch's
            tokens = table.argmax(-1).tolist() if rows is None else [int(table[row].argmax()) for row in rows]
            heights = [table.item(row, token) for row, token in zip(rows or range(len(tokens)), tokens, strict=True)]
        else:  # both in one read; ids are exact in float64
            ids = None
            scores = scores if rows is None else scores[rows]
            best = scores.argmax(dim=-1, keepdim=True)
            tokens, heights = torch.cat([best.double(), scores.gather(-1, best).double()], dim=1).T.tolist()
            tokens = [int(token) for token in tokens]
        if not all(map(math.isfinite, heights)):
            raise ValueError(NO_LAW)
        chosen: list[int] = tokens if ids is None else ids[tokens].tolist()
        return chosen


def chosen(scores: Tensor) -> Tensor:
    """The ids [n] that `choose` takes by scores [n, V], on their device and without a host read; -1 where it refuses them."""
    best = scores.argmax(dim=-1, keepdim=True)
    return best.masked_fill(~scores.gather(-1, best).isfinite(), -1)[:, 0]


def shares(scores: Tensor) -> Tensor:
    """Softmax over the last dimension. Raises ValueError for scores that make no law (NaN, infinity); costs one host read."""
    law = scores.softmax(dim=-1)
    if not math.isfinite(float(law[..., 0].sum())):  # one NaN makes its whole row NaN
        raise ValueError(NO_LAW)
    return law


def noise_key(seed: int, sample_id: str, turn: int) -> int:
    """A stable 63-bit key of one sample's turn: the same in every process, on every machine."""
    text = f"{seed}/{turn}/{sample_id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") & _MAX63


def keyed_uniforms(key: int, positions: Sequence[int], vocab_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Uniform numbers in (0, 1), float32 [n, vocab_size]: a hash of (key, position, token id), equal on every device.

    They carry 24 significant bits however small they are (down to 2^-63), so that the upper tail of the Gumbel noise made
    from them is not cut, and are never 0 or 1. Token ids index the noise: a cropped vocabulary keeps the same numbers.
    """
    seed = _mix(key)
    rows = [_mix(seed + int(position) * _GOLDEN) for position in positions]
    if str(device) == "cpu":
        return torch.from_numpy(_uniforms_on_cpu(rows, vocab_size))
    signed = host_numbers([_signed(row) for row in rows], torch.device(device)).to(device, non_blocking=True)
    bits = signed[:, None] ^ _token_hash(vocab_size, str(device))
    # The finaliser's last xor-shift is left out: it only improves low bits, which rounding to 24 bits drops.
    bits = _mix_rounds(bits).bitwise_and_(_MAX63).bitwise_or_(1)
    return bits.float().mul_(_UNIT).clamp_(max=_BELOW_ONE)


def host_numbers(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers on the host, for a copy to `device` that nobody waits for (`non_blocking`).

    For CUDA they lie in page-locked memory, which torch gives to nobody else before the copy has been made: the driver may wait
    for all that the stream has to do before it copies from other memory.
    """
    return torch.tensor(numbers, dtype=torch.int64, pin_memory=device.type == "cuda")


def keyed_gumbel(key: int, positions: Sequence[int], vocab_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard Gumbel noise, float32 [n, vocab_size], a pure function of (key, position, token id).

    The uniforms behind it are bit-identical on every device; the two logarithms agree to a few units in the last place.
    """
    uniforms = keyed_uniforms(key, positions, vocab_size, device)
    if uniforms.is_cpu:
        noise = uniforms.numpy()
        for logarithm in (np.log1p, np.log):
            logarithm(np.negative(noise, out=noise), out=noise)
        return torch.from_numpy(np.negative(noise, out=noise))
    return uniforms.neg_().log1p_().neg_().log_().neg_()  # 1 - u is uniform too, and small u keep their precision


def _uniforms_on_cpu(rows: Sequence[int], vocab_size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The same numbers in numpy, whose steps cost a fraction of torch's; rows: hashes of key and position."""
    bits = np.array(rows, dtype=np.uint64)[:, None] ^ _token_hash(vocab_size, "cpu").numpy().view(np.uint64)
    bits = _mix_rounds_on_cpu(bits)
    bits &= np.uint64(_MAX63)
    bits |= np.uint64(1)
    uniforms = bits.view(np.int64).astype(np.float32)
    uniforms *= np.float32(_UNIT)
    return np.minimum(uniforms, np.float32(_BELOW_ONE), out=uniforms)


def _mix_rounds_on_cpu(bits: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """`_mix_rounds` of unsigned patterns."""
    for shift, multiplier in ((30, _MULTIPLIER_1), (27, _MULTIPLIER_2)):
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(multiplier)
    return bits


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _signed(value: int) -> int:
    """A 64-bit pattern as the signed integer that torch.int64 holds."""
    return value - (1 << 64) if value >> 63 else value


def _mix(value: int) -> int:
    """splitmix64's finaliser on a Python integer (taken modulo 2^64)."""
    value &= _MASK64
    value = ((value ^ (value >> 30)) * _MULTIPLIER_1) & _MASK64
    value = ((value ^ (value >> 27)) * _MULTIPLIER_2) & _MASK64
    return value ^ (value >> 31)


def _shifted(bits: Tensor, shift: int) -> Tensor:
    """Logical right shift: torch's >> on int64 copies the sign bit, so the copies are masked off."""
    return (bits >> shift).bitwise_and_((1 << (64 - shift)) - 1)


def _mix_rounds(bits: Tensor) -> Tensor:
    """Both multiplication rounds of the finaliser, in place, modulo 2^64 (torch's int64 product wraps around)."""
    bits.bitwise_xor_(_shifted(bits, 30)).mul_(_signed(_MULTIPLIER_1))
    return bits.bitwise_xor_(_shifted(bits, 27)).mul_(_signed(_MULTIPLIER_2))


@functools.lru_cache(maxsize=16)
def _token_hash(vocab_size: int, device: str) -> Tensor:
    """A hash per token id, int64 [vocab_size]; kept, because every call of a run needs the same one."""
    bits = _mix_rounds(torch.arange(1, vocab_size + 1, dtype=torch.int64, device=device).mul_(_signed(_TOKEN_STEP)))
    return bits ^ _shifted(bits, 31)

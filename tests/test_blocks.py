"""Matrices in blocks of four bits: rounding, finding, storing, and training with them."""

from __future__ import annotations

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_native import quantised
from torch import nn

from specbench.config.options import ConfigError
from specbench.engine import blocks
from specbench.engine.backends.native.linear import NativeLinear
from specbench.engine.backends.native.packing import BYTES, EIGHT_BITS, FLOATS, FOUR_BITS, HALVES, pack
from specbench.engine.model import Model
from specbench.engine.reduced import ReducedHead
from specbench.parts.heads.rounding import rounded_state
from specbench.train.rounded import rounded
from specbench.train.settings import settings_from


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-4, 0.02, 1.0, 30.0]), st.sampled_from([0.0, 0.01, -0.5]))
def test_a_rounded_matrix_is_found_stored_and_read_to_the_bit(seed: int, size: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = size * (torch.randn(6, 96, generator=generator) + shift)
    made = blocks.nearest(weight)
    spread = weight.unflatten(1, (-1, 32)).amax(-1) - weight.unflatten(1, (-1, 32)).amin(-1)
    error = (made.weight - weight).abs().unflatten(1, (-1, 32)).amax(-1)
    assert (error <= spread * (0.5 / 15 + 0.002) + size * 2e-3).all(), "half a step, and what half precision loses"
    again = blocks.found(made.weight)
    assert again is not None and all(torch.equal(a, b) for a, b in zip(again, made, strict=True))
    stored = blocks.packed("w", made.weight) | {"b": torch.ones(3)}
    assert sum(part.nbytes for name, part in stored.items() if name != "b") == weight.numel() * 5 // 8
    read = blocks.unpacked(stored)
    assert set(read) == {"w", "b"} and torch.equal(read["w"], made.weight)
    assert pack(made.weight)[0] == FOUR_BITS


def test_a_matrix_that_was_never_rounded_is_not_found() -> None:
    """The twin, by a single number; and what lacks a part of a matrix is no state."""
    weight = blocks.nearest(torch.randn(4, 64)).weight
    weight[2, 40] *= 1.0001
    assert blocks.found(weight) is None
    assert not blocks.fits(torch.zeros(4, 40)) and not blocks.fits(torch.zeros(64))
    assert blocks.packed("w", weight) == {} and blocks.packed("w", torch.zeros(64)) == {}
    stored = blocks.packed("w", blocks.nearest(torch.randn(4, 64)).weight)
    with pytest.raises(KeyError):
        blocks.unpacked({name: part for name, part in stored.items() if name != "w.scale"})


@pytest.mark.parametrize(("bits", "kind"), [(8, EIGHT_BITS), (4, FOUR_BITS), (32, HALVES)])
def test_rows_of_a_reduced_head_keep_their_blocks(bits: int, kind: int) -> None:
    """So they are the whole head's logits to the bit, at a width that bfloat16 cannot have; what no blocks made is rounded."""
    head = nn.Linear(64, 200, bias=False).requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if bits != 32:
            head.weight.copy_(quantised(head.weight.shape, bits))
        hidden = torch.randn(3, 64)
    ids = torch.arange(1, 200, 3)
    reduced = ReducedHead.of(head, ids)
    assert pack(reduced.linear.weight)[0] == kind and BYTES[kind] <= BYTES[HALVES]
    assert torch.equal(reduced.linear.weight, head.weight[ids]) == (bits != 32)
    native = Model.wrap(tiny.module("llama")).run_natively().native
    assert native is not None
    said, whole = (NativeLinear(linear, native)(hidden) for linear in (reduced.linear, head))
    assert torch.equal(said, whole[:, ids]) == (bits != 32)


def test_a_single_number_off_makes_rows_that_are_rounded() -> None:
    """The twin: half a step from where its block has a place."""
    head = nn.Linear(64, 40, bias=False).requires_grad_(False)
    head.weight.copy_(quantised(head.weight.shape, 8))
    assert pack(head.weight)[0] == EIGHT_BITS
    head.weight[7, 9] += 0.5 * head.weight[7, 0:32].abs().max() / 127
    assert pack(head.weight)[0] == FLOATS
    reduced = ReducedHead.of(head, torch.arange(5, 10))
    assert pack(reduced.linear.weight)[0] == HALVES and not torch.equal(reduced.linear.weight, head.weight[5:10])
    assert pack(ReducedHead.of(head, torch.arange(5)).linear.weight)[0] == EIGHT_BITS, "these were not touched"


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.odd = nn.Linear(64, 32), nn.Linear(32, 7)
        self.frozen = nn.Linear(32, 32).requires_grad_(False)
        self.zero = nn.Linear(32, 32)
        nn.init.zeros_(self.zero.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.frozen(self.inner(x))
        out: torch.Tensor = self.odd(y + self.zero(y))
        return out


def test_training_sees_rounded_weights_and_leaves_them() -> None:
    torch.manual_seed(0)
    model = Two()
    before, frozen = model.inner.weight.detach().clone(), model.frozen.weight.clone()
    with rounded(model):
        assert blocks.found(model.inner.weight.detach()) is not None, "the forward's weights are rounded"
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        x, wanted, losses = torch.randn(16, 64), torch.randn(16, 7), []
        for _ in range(60):
            loss = (model(x) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    after = float((model(x) - wanted).square().mean().detach())
    assert after < 0.7 * losses[0] and after == pytest.approx(losses[-1], rel=0.1), "what was trained is what is left"
    assert not torch.equal(model.inner.weight, before) and torch.equal(model.frozen.weight, frozen)
    assert type(model.inner) is nn.Linear and dict(model.named_parameters()).keys() == dict(Two().named_parameters()).keys()
    state = rounded_state(model)
    stored = {name.removesuffix(".q4") for name in state if name.endswith(".q4")}
    assert {"inner.weight", "zero.weight", "odd.weight"} == stored, "seven outputs are whole blocks too"
    read = blocks.unpacked(state)
    assert torch.equal(read["inner.weight"], model.inner.weight) and read["inner.bias"].dtype == torch.bfloat16
    assert pack(read["frozen.weight"].float())[0] == HALVES


def test_other_widths_are_refused_and_parts_that_are_stored_otherwise() -> None:
    parts = {
        "whole": {"kind": "draft"},
        "target": {"kind": "target"},
        "some": {"kind": "draft", "num_ids": 40},
        "heads": {"kind": "heads"},
    }
    for name in parts:
        plain = {"part": name, "parts": parts, "train": {"weight_bits": 4, "text": "chat"}}
        if name in ("some", "heads"):
            assert settings_from(plain).chosen().kind == parts[name]["kind"]
        else:
            with pytest.raises(ConfigError, match=r"train\.weight_bits=4: .*heads and of drafts over some ids"):
                settings_from(plain)

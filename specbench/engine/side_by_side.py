"""A draft whose consecutive layers, in groups, attend to the same hidden states (EasySpec's fuzzy speculation, 2502.02493).

In a group of layers i .. i + n - 1 every attention reads what enters layer i, so that n devices could compute them at once; the
MLPs follow each other: h[j + 1] = h[j] + a[j] + MLP(h[j] + a[j]) with a[j] = attention of layer j on its own norm of h[i].
Here the attentions run one after another, and both times are told: the one that passed, and the one with a device for each
attention of a group, which then takes as long as its slowest. What devices would say to each other is in neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from specbench.engine.layers import has_layers, with_parts
from specbench.engine.session import Session
from specbench.measure.sensors.clock import clock_for

Groups = Sequence[Sequence[int]]


def groups_of(num_layers: int, size: int, exact_ends: int) -> list[list[int]]:
    """Runs of at most `size` layers, in order, without `exact_ends` of them at either end; runs of one are no group."""
    inner = range(exact_ends, num_layers - exact_ends)
    runs = [list(inner[at : at + size]) for at in range(0, len(inner), size)]
    return [run for run in runs if len(run) > 1]


class SideBySide(Session):
    """A session on the weights and the cache of `whole`, for rows that `whole` forgets again: their keys and values are fuzzy.

    Raises ValueError for a model whose layers do not read their input by an `input_layernorm` of the attention alone.
    """

    def __init__(self, whole: Session, groups: Groups):
        model = whole.model
        if not has_layers(model) or not all(_can_be_grouped(layer) for layer in model.module.model.layers):
            raise ValueError("its layers are not attention behind input_layernorm and MLP behind post_attention_layernorm")
        self.whole, self.clock = whole, clock_for(str(model.device))
        self._stamps: list[Any] = []
        self._spans: list[tuple[int, int, int]] = []  # (group, first stamp, last stamp); -1: a whole forward
        layers = list(model.module.model.layers)
        for number, members in enumerate(groups):
            shared = _Input()
            for place, layer in enumerate(members):
                layers[layer] = self._member(layers[layer], shared, place == 0, number)
        outer, inner = model.module, model.module.model
        module = with_parts(outer, outer.config, model=with_parts(inner, inner.config, layers=nn.ModuleList(layers)))
        super().__init__(replace(model, module=module), whole.tap_layers, cache=whole.cache)

    def _member(self, layer: Any, shared: _Input, leads: bool, group: int) -> Any:
        norm, attention = _SharedNorm(layer.input_layernorm, shared, leads), _Timed(layer.self_attn, self._time, group)
        return with_parts(layer, None, input_layernorm=norm, self_attn=attention)

    def _time(self, group: int, call: Callable[[], Any]) -> Any:
        first = len(self._stamps)
        self._stamps.append(self.clock.stamp())
        done = call()
        self._spans.append((group, first, len(self._stamps)))
        self._stamps.append(self.clock.stamp())
        return done

    def feed(self, ids: Sequence[int] | Tensor, **more: Any) -> Tensor:
        logits: Tensor = self._time(-1, lambda: super(SideBySide, self).feed(ids, **more))
        self.whole._tapped = self._tapped
        return logits

    def forget_times(self) -> None:
        """From now on, seconds are counted anew."""
        self._stamps, self._spans = [], []

    def seconds(self) -> tuple[float, float]:
        """Of all forwards since: as they passed, and with a device for each attention of a group (simulated). Off the clock."""
        if not self._stamps:
            return 0.0, 0.0
        at = self.clock.seconds(self._stamps)
        real, saved = 0.0, 0.0
        open_group: list[float] = []
        last = -1
        for group, start, end in self._spans:
            lasted = at[end] - at[start]
            if group != last:
                saved += sum(open_group) - max(open_group, default=0.0)
                open_group = []
            last = group
            if group == -1:
                real += lasted
            else:
                open_group.append(lasted)
        return real, real - saved


def _can_be_grouped(layer: Any) -> bool:
    return all(
        isinstance(getattr(layer, name, None), nn.Module)
        for name in ("input_layernorm", "self_attn", "post_attention_layernorm")
    )


class _Input:
    """What entered a group's first layer in this forward."""

    hidden: Tensor


class _SharedNorm(nn.Module):
    """A layer's own norm, of what entered the group."""

    shared: _Input

    def __init__(self, norm: nn.Module, shared: _Input, leads: bool):
        super().__init__()
        self.norm, self.leads = norm, leads
        self.__dict__["shared"] = shared

    def forward(self, hidden: Tensor) -> Any:
        if self.leads:
            self.shared.hidden = hidden
        return self.norm(self.shared.hidden)


class _Timed(nn.Module):
    time: Callable[..., Any]

    def __init__(self, attention: nn.Module, time: Callable[..., Any], group: int):
        super().__init__()
        self.attention, self.group = attention, group
        self.__dict__["time"] = time

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.time(self.group, lambda: self.attention(*args, **kwargs))

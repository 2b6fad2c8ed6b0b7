"""Layer ranges, riders that enter at a later layer, forks: each against fresh forwards; twins of the assertions at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import tiny
import torch
from target_cases import (
    LAYERED,
    LAYERS,
    NODES,
    PARENTS,
    PATH,
    PENDING,
    PROMPT,
    RIDER_PARENTS,
    N,
    begun,
    check_cache,
    commit,
    entering,
    ids_to,
    model_of,
    nodes_to,
    nothing_gathered,
    riders_on_the_root,
    riders_stay,
    same,
    skipping,
    states_of,
)

from specbench.engine.model import Model
from specbench.engine.session import Session
from specbench.engine.tree import DraftTree, Riders, Verdict


# ------------------------------------------------------------------------------------------------------------ layer ranges
def check_late_riders(architecture: str) -> None:
    """Riders that enter at a later layer, on a tree whose own rows ran through all of them, and on one that was begun there."""
    model, layer = model_of(architecture), 2
    width = model.module.config.hidden_size
    given = torch.randn((len(RIDER_PARENTS), width), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    riders = Riders(RIDER_PARENTS, embeddings=given, start_layer=layer)
    whole, by_parts = begun(model), begun(model)
    rows = by_parts.run_layers([PENDING, *NODES], 0, layer, [-1, *(parent + 1 for parent in PARENTS)])
    trees = [
        DraftTree(NODES, PARENTS, riders=riders),
        DraftTree(NODES, PARENTS, riders=riders, start_layer=layer, hidden=rows),
    ]
    for session, tree, share in ((whole, trees[0], 1.0), (by_parts, trees[1], 0.5)):
        evidence = session.forward(tree)
        assert evidence.riders is not None and evidence.share == share
        for row in range(1 + N):
            same(evidence.logits[row], tiny.plain_forward(model.module, ids_to(row - 1))[-1])
        for rider in range(len(RIDER_PARENTS)):
            chain = [place - N for place in nodes_to(N + rider, [*PARENTS, *RIDER_PARENTS]) if place >= N]
            with entering(model, layer, given[chain]):
                same(evidence.riders[rider], tiny.plain_forward(model.module, ids_to(N + rider))[-1])
        check_cache(session, commit(session, tree, PATH))


@pytest.mark.parametrize("architecture", LAYERED)
def test_riders_may_enter_at_a_later_layer(architecture: str) -> None:
    check_late_riders(architecture)


def check_layers(architecture: str, exit_layer: int = 1) -> None:
    """Drafting through the first layers, token by token, and the rest at verification: logits and cache of a whole forward.

    Rounds accept nothing, some and all of it; a plain round and one of a whole forward stand in between.
    """
    model = model_of(architecture)
    session, whole = begun(model), begun(model)
    ids, pending = list(PROMPT), PENDING
    for number, (length, accepted) in enumerate([(3, 1), (4, 4), (2, 0), (0, 0), (3, 2)]):
        drafted = tiny.prompt(length, seed=20 + number)
        hidden = []
        for fed, row in enumerate([pending, *drafted]):
            hidden.append(session.run_layers([row], 0, exit_layer))
            expected = states_of(model, [*ids, *[pending, *drafted][: fed + 1]])
            same(hidden[-1][0], expected[exit_layer][0, -1])
            with torch.inference_mode():
                normed = model.module.lm_head(model.module.model.norm(expected[exit_layer][0, -1:]))
            same(session.exit_logits(hidden[-1]), normed)
        evidence = session.forward(DraftTree(drafted, start_layer=exit_layer, hidden=torch.cat(hidden)))
        assert evidence.share == (LAYERS - exit_layer) / LAYERS
        same(evidence.logits, whole.forward(DraftTree(drafted)).logits)
        same(evidence.logits, tiny.plain_forward(model.module, [*ids, pending, *drafted])[-1 - length :])
        verdict = Verdict(tuple(range(accepted)), (*drafted[:accepted], 30 + number))
        session.commit(verdict)
        whole.commit(verdict)
        ids, pending = [*ids, pending, *drafted[:accepted]], verdict.extra
        check_cache(session, ids)
        if number == 1:  # a round of the ordinary kind
            for one in (session, whole):
                one.forward(DraftTree([1, 2], [-1, -1]))
                one.commit(Verdict((1,), (2, 9)))
            ids, pending = [*ids, pending, 2], 9
            check_cache(session, ids)


@pytest.mark.parametrize("exit_layer", [1, 3])
@pytest.mark.parametrize("architecture", LAYERED)
def test_layers_in_two_parts_are_a_whole_forward(architecture: str, exit_layer: int) -> None:
    check_layers(architecture, exit_layer)


# ------------------------------------------------------------------------------------------------------------------- forks
def contents(session: Session) -> list[torch.Tensor]:
    """Keys and values of every layer as far as they count."""
    held = []
    for layer in session.cache.layers:
        assert layer.keys is not None and layer.values is not None
        held += [layer.keys[:, :, : layer.length].clone(), layer.values[:, :, : layer.length].clone()]
    return held


def check_fork(architecture: str, skip: tuple[int, ...] = (1, 2)) -> None:
    """What a fork drafts is what the model says whose new rows pass by these layers; after `restore` nothing is left of it."""
    model = model_of(architecture)
    session = begun(model)
    before, mark = contents(session), session.mark()
    fork, drafted = session.fork(skip), [PENDING]
    for _ in range(3):
        logits = fork.feed(drafted[-1:])
        with skipping(model, skip, len(drafted)):
            same(logits[-1], tiny.plain_forward(model.module, [*PROMPT, *drafted])[-1])
        drafted.append(int(logits[-1].argmax()))
    session.restore(mark)
    assert session.pending == PENDING
    assert all(torch.equal(a, b) for a, b in zip(before, contents(session), strict=True)), "the fork left something"
    tree = DraftTree(drafted[1:])
    same(session.forward(tree).logits, tiny.plain_forward(model.module, [*PROMPT, *drafted])[-4:])
    check_cache(session, commit(session, tree, (0, 1)))
    again = session.mark()
    session.fork(skip).feed([11])
    session.restore(again)
    check_cache(session, [*PROMPT, *drafted[:3]])


@pytest.mark.parametrize("architecture", LAYERED)
def test_a_fork_skips_layers_and_leaves_the_cache_alone(architecture: str) -> None:
    check_fork(architecture)
    check_fork(architecture, skip=(0,))


def test_a_fork_from_nothing_is_a_model_without_these_layers() -> None:
    made = tiny.module("llama", layers=LAYERS)
    session = Session(Model.wrap(made))
    session.start(32)
    logits = session.fork((1, 3)).feed(PROMPT)
    small = tiny.module("llama", layers=2, seed=5)
    state = {
        name.replace("layers.2.", "layers.1."): value
        for name, value in made.state_dict().items()
        if "layers.1." not in name and "layers.3." not in name
    }
    small.load_state_dict(state)
    same(logits, tiny.plain_forward(small, PROMPT))


def test_a_mark_that_is_no_longer_there_is_no_place_to_go_back_to() -> None:
    session = begun(model_of("llama"))
    mark = session.mark()
    session.rollback(4)
    with pytest.raises(AssertionError, match="of the mark"):
        session.restore(mark)


# ------------------------------------------------------------------------------------------------------------------- twins
def one_layer_late(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Session.part

    def part(self: Session, layers: Sequence[int], final_norm: bool = True) -> Session:
        late = [*layers][1:] if final_norm and layers[0] > 0 else layers
        return real(self, late, final_norm)

    monkeypatch.setattr(Session, "part", part)


def fork_not_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "restore", lambda self, mark: None)


def fork_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "fork", lambda self, skip_layers=(): self.part(range(LAYERS)))


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (riders_on_the_root, lambda: check_late_riders("llama")),
        (riders_stay, lambda: check_late_riders("qwen3")),
        (one_layer_late, lambda: check_layers("llama")),
        (one_layer_late, lambda: check_late_riders("llama")),
        (nothing_gathered, lambda: check_late_riders("llama")),
        (fork_not_restored, lambda: check_fork("llama")),
        (fork_of_everything, lambda: check_fork("llama")),
    ],
)
def test_these_assertions_catch(
    fault: Callable[[pytest.MonkeyPatch], None], check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError, match=r"not close|another length|left something"):
        check()

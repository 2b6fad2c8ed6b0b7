"""What a target answers beside logits: taps, riders, layer ranges, forks, a draft's branches; each against fresh forwards.

The reference is always transformers' own model over the plain sequence of ids, without a cache, with hooks where rows enter at
a later layer or skip one. Models are in double precision, so that rounding is far from what a fault changes. Twins put a known
fault in and show that the same assertions catch it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch

import specbench.engine.session as session_module
from specbench.check.bench import fresh_session
from specbench.check.state import cache_error
from specbench.config.options import ConfigError
from specbench.engine.branching import BranchingSession
from specbench.engine.cache import KVCache
from specbench.engine.model import Model
from specbench.engine.session import Session
from specbench.engine.tree import DraftTree, Feedback, Riders, Verdict
from specbench.method import Drafter, Method, Needs

LAYERS = 4
LAYERED = ("llama", "qwen3", "mistral", "gemma3")  # laid out as Llama: model.layers, model.norm, lm_head
PROMPT, PENDING = tiny.prompt(9), 7
PARENTS = [-1, -1, 0, 1, 0, 2, 2, 5]
NODES = tiny.prompt(len(PARENTS), seed=3)
PATH = (0, 2, 6)  # no leading run of rows: the cache must gather
# Riders on the root, on nodes and on riders; N + j is rider j.
N = len(NODES)
RIDER_PARENTS = [-1, N + 0, 2, N + 2, 6, 6]
RIDER_IDS = tiny.prompt(len(RIDER_PARENTS), seed=11)

MODELS: dict[str, Model] = {}


def model_of(architecture: str) -> Model:
    """Made once: sessions never change a model."""
    if architecture not in MODELS:
        MODELS[architecture] = tiny.model(architecture, layers=LAYERS, dtype=torch.float64)
    return MODELS[architecture]


def same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def begun(model: Model, taps: Sequence[int] = (), kind: type[Session] = Session) -> Session:
    """A session with the prompt fed and a pending token."""
    session = kind(model, taps)
    session.start(96)
    session.prefill(PROMPT)
    session.pending = PENDING
    return session


def nodes_to(node: int, parents: Sequence[int]) -> list[int]:
    path: list[int] = []
    while node >= 0:
        path.insert(0, node)
        node = parents[node]
    return path


def ids_to(node: int) -> list[int]:
    """The whole text down to a node, or, from N on, to a rider."""
    return [*PROMPT, PENDING, *([*NODES, *RIDER_IDS][i] for i in nodes_to(node, [*PARENTS, *RIDER_PARENTS]))]


def causal(rows: int) -> torch.Tensor:
    return torch.full((rows, rows), torch.finfo(torch.float64).min, dtype=torch.float64).triu_(1)[None, None]


def states_of(model: Model, ids: Sequence[int]) -> Any:
    with torch.inference_mode():
        return model.module(torch.tensor([list(ids)]), use_cache=False, output_hidden_states=True).hidden_states


@contextlib.contextmanager
def entering(model: Model, layer: int, rows: torch.Tensor) -> Iterator[None]:
    """The last rows of a forward are these when they enter the layer."""

    def enter(_: Any, arguments: Any, options: Any) -> Any:
        hidden = arguments[0].clone()
        hidden[0, -len(rows) :] = rows
        return (hidden, *arguments[1:]), options

    handle = model.module.model.layers[layer].register_forward_pre_hook(enter, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def skipping(model: Model, layers: Sequence[int], num_rows: int) -> Iterator[None]:
    """The last rows of a forward pass by these layers."""

    def skip(_: Any, arguments: Any, output: Any) -> Any:
        made = output[0] if isinstance(output, tuple) else output
        made = made.clone()
        made[0, -num_rows:] = arguments[0][0, -num_rows:]
        return (made, *output[1:]) if isinstance(output, tuple) else made

    handles = [model.module.model.layers[layer].register_forward_hook(skip) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_cache(session: Session, ids: Sequence[int]) -> None:
    """The session holds these ids, in every layer, and nothing else."""
    assert {layer.length for layer in session.cache.layers} == {len(ids)}, "layers of another length"
    assert cache_error(session, ids) < 1e-6, "not close: a cache that a fresh forward does not leave"


def commit(session: Session, tree: DraftTree, path: tuple[int, ...], extra: int = 11) -> list[int]:
    """Commit a path of the tree, and return everything that is fed then."""
    ids = [*PROMPT, PENDING, *(tree.tokens[node] for node in path)]
    session.commit(Verdict(path, (*ids[len(PROMPT) + 1 :], extra)))
    return ids


# ------------------------------------------------------------------------------------------------------------------- taps
def check_taps(architecture: str) -> None:
    """Of the prompt; of ALL rows of a tree, as each would be alone; of what was committed."""
    model, layers = model_of(architecture), (0, 2, -1)
    session = Session(model, layers)
    session.start(96)
    prompt = session.prefill(PROMPT).taps
    for layer in layers:
        same(prompt[layer], states_of(model, PROMPT)[layer][0])
    session.pending = PENDING
    tree = DraftTree(NODES, PARENTS)
    evidence = session.forward(tree)
    for row in range(1 + N):
        expected = states_of(model, ids_to(row - 1))
        for layer in layers:
            assert len(evidence.taps[layer]) == 1 + N
            same(evidence.taps[layer][row], expected[layer][0, -1])
    feedback = Feedback(tree, evidence, Verdict(PATH, (*(NODES[node] for node in PATH), 11)))
    expected = states_of(model, [*PROMPT, PENDING, *(NODES[node] for node in PATH)])
    for layer in layers:
        same(feedback.tap(layer), expected[layer][0, len(PROMPT) :])


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_taps_are_the_hidden_states_of_the_prompt_and_of_all_rows(architecture: str) -> None:
    check_taps(architecture)


def test_taps_of_the_layer_beside_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Session._call

    def shifted(self: Session, *arguments: Any, **options: Any) -> Any:
        output = real(self, *arguments, **options)
        output.hidden_states = (*output.hidden_states[1:], output.hidden_states[0])
        return output

    monkeypatch.setattr(Session, "_call", shifted)
    with pytest.raises(AssertionError, match="not close"):
        check_taps("llama")


def test_the_last_tap_is_what_the_head_reads_and_nobody_pays_for_none() -> None:
    model = model_of("llama")
    evidence = begun(model, (-1,)).forward(DraftTree([1, 2]))
    with torch.inference_mode():
        same(model.module.lm_head(evidence.taps[-1]), evidence.logits)
    assert begun(model).forward(DraftTree([1, 2])).taps == {}


# ----------------------------------------------------------------------------------------------------------------- riders
def check_riders(architecture: str, taps: Sequence[int] = ()) -> None:
    """Riders answer as the text down to them would; nodes as if there were none; nothing of them stays."""
    model = model_of(architecture)
    session = begun(model, taps)
    tree = DraftTree(NODES, PARENTS, riders=Riders(RIDER_PARENTS, RIDER_IDS))
    evidence = session.forward(tree)
    assert evidence.riders is not None and len(evidence.riders) == len(RIDER_IDS) and len(evidence.logits) == 1 + N
    assert all(len(rows) == 1 + N for rows in evidence.taps.values())
    for row in range(1 + N):
        same(evidence.logits[row], tiny.plain_forward(model.module, ids_to(row - 1))[-1])
    for rider in range(len(RIDER_IDS)):
        same(evidence.riders[rider], tiny.plain_forward(model.module, ids_to(N + rider))[-1])
    ids = commit(session, tree, PATH)
    check_cache(session, ids)
    second = session.forward(DraftTree([20, 21], riders=Riders([-1, 0], [3, 4])))
    same(second.logits[2], tiny.plain_forward(model.module, [*ids, 11, 20, 21])[-1])
    assert second.riders is not None
    same(second.riders[1], tiny.plain_forward(model.module, [*ids, 11, 20, 4])[-1])
    session.commit(Verdict((0,), (20, 5)))
    check_cache(session, [*ids, 11, 20])


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_riders_answer_as_the_text_down_to_them_and_leave_nothing(architecture: str) -> None:
    check_riders(architecture)
    check_riders(architecture, taps=(-1,))


def check_positions(architecture: str) -> None:
    """Places of their own: a chain of riders that stands some places further on."""
    model, places = model_of(architecture), [4, 7, 9]
    tree = DraftTree([3, 5], riders=Riders([0, 2, 3], [8, 9, 10], positions=places))
    session = begun(model)
    answered = session.forward(tree).riders
    assert answered is not None
    ids = [*PROMPT, PENDING, 3, 8, 9, 10]
    text = len(PROMPT)
    positions = torch.tensor([[*range(text + 2), *(text + place for place in places)]])
    with torch.inference_mode():
        mask = causal(len(ids))
        expected = model.module(torch.tensor([ids]), position_ids=positions, attention_mask=mask, use_cache=False).logits[0]
    same(answered, expected[-3:])
    check_cache(session, commit(session, tree, (0, 1)))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gpt_neox"])
def test_riders_stand_where_they_say(architecture: str) -> None:
    check_positions(architecture)


def check_embeddings(architecture: str) -> None:
    """What enters the first layer in place of tokens: those of tokens answer as these do; others as a forward of them."""
    model = model_of(architecture)
    embedding = model.module.get_input_embeddings()
    with torch.inference_mode():
        of_ids = embedding(torch.tensor(RIDER_IDS))
    evidence = begun(model).forward(DraftTree(NODES, PARENTS, riders=Riders(RIDER_PARENTS, embeddings=of_ids)))
    plain = begun(model).forward(DraftTree(NODES, PARENTS, riders=Riders(RIDER_PARENTS, RIDER_IDS)))
    assert evidence.riders is not None and plain.riders is not None
    same(evidence.riders, plain.riders)
    same(evidence.logits, plain.logits)
    prompts = torch.randn((2, of_ids.shape[1]), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * of_ids.std()
    session, tree = begun(model), DraftTree([3, 5], riders=Riders([0, 2], embeddings=prompts))
    answered = session.forward(tree).riders
    assert answered is not None
    with torch.inference_mode():
        whole = torch.cat([embedding(torch.tensor([*PROMPT, PENDING, 3])), prompts])
        same(answered, model.module(inputs_embeds=whole[None], use_cache=False).logits[0, -2:])
    check_cache(session, commit(session, tree, (0,)))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_riders_may_be_embeddings(architecture: str) -> None:
    check_embeddings(architecture)


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


# ------------------------------------------------------------------------------------------------------------ layer ranges
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


# ---------------------------------------------------------------------------------------------------------------- branches
def check_branches(architecture: str, levels: Sequence[Sequence[int]], path: Sequence[int]) -> None:
    """A tree grown level by level, its rows numbered as they come; then a path of it is kept, and another tree grown on that.

    levels: the parents of each level's rows.
    """
    model = model_of(architecture)
    session = BranchingSession(model)
    session.start(128)
    text = list(PROMPT)
    session.feed(text)
    for turn in range(2):
        session.branch()
        parents = [parent for level in levels for parent in level]
        tokens, grown = tiny.prompt(len(parents), seed=40 + turn), 0
        for level in levels:
            rows = range(grown, grown + len(level))
            logits = session.grow([tokens[row] for row in rows], level)
            for row in rows:
                ids = [*text, *(tokens[i] for i in nodes_to(row, parents))]
                same(logits[row - grown], tiny.plain_forward(model.module, ids)[-1])
            grown += len(level)
        session.keep(path)
        text += [tokens[row] for row in path]
        assert session.length == len(text)
        same(session.feed([5])[-1], tiny.plain_forward(model.module, [*text, 5])[-1])
        session.rollback(len(text))
    check_cache(session, text)


CHAIN = [[-1], *([row] for row in range(8))]  # deeper than a window
BUSHY = [[-1, -1, -1], [0, 0, 2], [3, 5, 5], [8]]
WIDE = [[-1] * tiny.WINDOW * 2, list(range(tiny.WINDOW * 2))]  # more rows than a window is long, two deep


@pytest.mark.parametrize(
    ("levels", "path"), [(CHAIN, (0, 1, 2, 3)), (BUSHY, (2, 5, 8, 9)), (WIDE, (7, 19)), (BUSHY, ())], ids=str
)
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_branches_see_the_trunk_and_their_own_path(
    architecture: str, levels: Sequence[Sequence[int]], path: Sequence[int]
) -> None:
    check_branches(architecture, levels, path)


def test_a_rollback_forgets_the_branches() -> None:
    model = model_of("llama")
    session = BranchingSession(model)
    session.start(64)
    session.feed(PROMPT)
    session.branch()
    session.grow([1, 2], [-1, -1])
    session.rollback(5)
    same(session.grow([3, 4], [-1, -1])[1], tiny.plain_forward(model.module, [*PROMPT[:5], 4])[-1])
    with pytest.raises(AssertionError, match="earlier call"):
        session.grow([1, 2], [0, 3])


# ------------------------------------------------------------------------------------------------------------------- twins
def riders_on_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    real = session_module._with_riders

    def flat(tree: DraftTree) -> Any:
        parents, depths = real(tree)
        return [*parents[: 1 + len(tree.tokens)], *(0 for _ in range(len(tree.riders or ())))], depths

    monkeypatch.setattr(session_module, "_with_riders", flat)


def riders_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of a forward is kept."""
    monkeypatch.setattr(KVCache, "keep_rows", lambda self, start, rows: None)


def places_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    real = session_module._with_riders
    monkeypatch.setattr(session_module, "_with_riders", lambda tree: (real(tree)[0], session_module._depths(real(tree)[0])))


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


def branches_see_all(monkeypatch: pytest.MonkeyPatch) -> None:
    real = BranchingSession._mask

    def mask(self: BranchingSession, own: torch.Tensor, positions: torch.Tensor) -> Any:
        return real(self, torch.zeros_like(own), positions)

    monkeypatch.setattr(BranchingSession, "_mask", mask)


def nothing_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVCache, "keep_rows", lambda self, start, rows: self.rollback(start + len(rows)))


def window_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    real = BranchingSession._mask

    def mask(self: BranchingSession, own: torch.Tensor, positions: torch.Tensor) -> Any:
        depths, rows = self._row_depths, len(own)
        self._row_depths = list(range(len(depths)))
        made = real(self, own, self.trunk + torch.arange(len(depths) - rows, len(depths)))
        self._row_depths = depths
        return made

    monkeypatch.setattr(BranchingSession, "_mask", mask)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (riders_on_the_root, lambda: check_riders("llama")),
        (riders_on_the_root, lambda: check_embeddings("gpt2")),
        (riders_on_the_root, lambda: check_late_riders("llama")),
        (riders_stay, lambda: check_riders("llama")),
        (riders_stay, lambda: check_late_riders("qwen3")),
        (places_forgotten, lambda: check_positions("llama")),
        (places_forgotten, lambda: check_positions("gpt2")),
        (one_layer_late, lambda: check_layers("llama")),
        (one_layer_late, lambda: check_late_riders("llama")),
        (nothing_gathered, lambda: check_late_riders("llama")),
        (fork_not_restored, lambda: check_fork("llama")),
        (fork_of_everything, lambda: check_fork("llama")),
        (branches_see_all, lambda: check_branches("llama", BUSHY, (2, 5, 8, 9))),
        (nothing_gathered, lambda: check_branches("llama", BUSHY, (2, 5, 8, 9))),
        (window_by_row, lambda: check_branches("mistral", WIDE, (7, 19))),
        (window_by_row, lambda: check_branches("gemma3", WIDE, (7, 19))),
    ],
)
def test_these_assertions_catch(
    fault: Callable[[pytest.MonkeyPatch], None], check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError, match=r"not close|another length|left something"):
        check()


# ---------------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_target_says_what_it_can(architecture: str) -> None:
    able = Session(model_of(architecture)).can
    assert {"tree", "taps", "riders", "logits"} <= able
    assert ({"layers", "fork"} <= able) == (architecture in LAYERED)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_layers_of_a_model_without_such_are_refused(architecture: str) -> None:
    session = begun(model_of(architecture))
    for ask in (lambda: session.run_layers([1], 0, 2), lambda: session.fork((1,)), lambda: session.part([0])):
        with pytest.raises(ValueError, match=r"is not made of model\.layers"):
            ask()


def test_a_model_of_chains_alone_takes_no_rows_beside_each_other() -> None:
    model = replace(model_of("llama"), tree_refusal="it says so")
    assert not {"tree", "riders"} & Session(model).can
    with pytest.raises(ValueError, match="chains only: it says so"):
        begun(model).forward(DraftTree([1, 2], riders=Riders([-1], [3])))
    with pytest.raises(ValueError, match="chains only: it says so"):
        BranchingSession(model)


class Asking(Drafter):
    def __init__(self, **needs: Any):
        self.wanted = Needs(**needs)

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return self.wanted


@pytest.mark.parametrize("what", ["layers", "fork"])
def test_a_method_is_refused_before_it_begins_by_what_is_missing(what: str) -> None:
    with pytest.raises(ConfigError, match=f"it cannot give {what}, which this method needs") as refused:
        Method(Asking(**{what: True})).open(tiny.runtime(model_of("gpt2")))
    assert refused.value.key == "pair.target"
    Method(Asking(**{what: True})).open(tiny.runtime(model_of("llama")))


def test_riders_are_refused_by_a_target_of_chains() -> None:
    chains = replace(model_of("llama"), tree_refusal="it says so")
    with pytest.raises(ConfigError, match="it cannot give riders"):
        Method(Asking(riders=True)).open(tiny.runtime(chains))


def test_fresh_sessions_are_what_caches_are_compared_with() -> None:
    """The twin of `check_cache`: another text, and the same text one row short."""
    session, _ = fresh_session(model_of("llama"), PROMPT)
    check_cache(session, PROMPT)
    with pytest.raises(AssertionError):
        check_cache(session, [*PROMPT[:-1], 1 + PROMPT[-1]])
    with pytest.raises(AssertionError):
        check_cache(session, PROMPT[:-1])

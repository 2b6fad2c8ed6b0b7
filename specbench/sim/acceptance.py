"""Which drafts are right: recorded from a run's rounds, or drawn by a seed from rates.

Under a match rule a draft stands exactly when it is the target's own token, so all that a schedule needs to know of two models
is, for every output position, whether the draft would have said the target's token there, and where not, how far down its
list that token stands (a schedule that prepares several verdicts asks this). Both are properties of the text, whoever asks.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from specbench.config.draft_errors import DraftErrors
from specbench.config.options import ConfigError
from specbench.measure.records.events import SampleRecord
from specbench.measure.records.store import RoundColumns

LATER_RANKS = 0.6  # share of wrong drafts whose token is the next in the draft's list, of those that are left: see `Profile`


@dataclass(frozen=True)
class Text:
    """One continuation, as far as a simulation knows it.

    right[i]: whether the draft has output position i (0 is the prefill's and nobody drafts it). rank[i]: the place of the
    target's token in the draft's list there, 1 where it is right. length: of the output; eos: whether an EOS ends it.
    behind: of a chain of drafts, whose first is the draft, what each further one has right: see `in_chain`.
    """

    sample_id: str
    turn: int
    prompt_length: int
    length: int
    limit: int
    eos: bool
    right: tuple[bool, ...]
    rank: tuple[int, ...]
    behind: tuple[tuple[bool, ...], ...] = ()


@dataclass(frozen=True)
class Profile:
    """Rates of right drafts. rates[r]: behind r right ones in a row, the last rate for all longer runs; in [0, 1].

    rank_rate: of the wrong ones, the share whose token is the draft's second choice, of the rest its third, and so on.
    """

    rates: tuple[float, ...]
    rank_rate: float = LATER_RANKS

    def __post_init__(self) -> None:
        for rate in (*self.rates, self.rank_rate):
            if not 0.0 <= rate <= 1.0:
                raise ConfigError("acceptance", rate, "a rate lies between 0 and 1")
        if not self.rates:
            raise ConfigError("acceptance", "", "give a rate, several by run length, a pattern or a run folder")

    def text(
        self,
        sample_id: str,
        turn: int,
        prompt_length: int,
        limit: int,
        seed: int,
        known: Mapping[int, bool] | None = None,
        foreseen: Mapping[int, bool] | None = None,
    ) -> Text:
        """A text of full length. known, foreseen: positions that are not drawn, because it was seen what they are."""
        known, foreseen = known or {}, foreseen or {}
        draw, right, rank, run = (
            random.Random(f"{seed}/{sample_id}/{turn}"),
            [True],
            [1 if foreseen.get(0, True) else MAX_RANK],
            0,
        )
        for position in range(1, limit):
            chance, place = draw.random(), 2
            while draw.random() >= self.rank_rate and place < MAX_RANK:
                place += 1
            if position in foreseen:
                place = 2 if foreseen[position] else MAX_RANK
            stands = known.get(position, foreseen.get(position, chance < self.rates[min(run, len(self.rates) - 1)]))
            right.append(stands)
            rank.append(1 if stands else place)
            run = run + 1 if stands else 0
        return Text(sample_id, turn, prompt_length, limit, limit, False, tuple(right), tuple(rank))


MAX_RANK = 16


def rate_of(texts: Sequence[Text]) -> float:
    """Share of right drafts, over all positions that could be drafted."""
    right = [stands for text in texts for stands in text.right[1 : text.length]]
    return sum(right) / len(right) if right else float("nan")


def in_chain(texts: Sequence[Text], first: float, rates: Sequence[float], seed: int) -> list[Text]:
    """The texts for a chain of drafts: theirs, at the rate `first`, is the first one's, `rates` are those of the further ones.

    Ours, for nobody published how the models of a chain agree: they are nested, each right wherever the one before it is, and
    a seed decides where else, so that it comes to its rate; where several are wrong they say different tokens. Raises
    ConfigError for rates that fall along the chain.
    """
    below, rights = first, [text.right for text in texts]
    found: list[tuple[tuple[bool, ...], ...]] = [() for _ in texts]
    for number, rate in enumerate(rates):
        if rate < below:
            remedy = f"a model of a chain is right wherever the one before it is ({below:.2f} of the tokens): let rates rise"
            raise ConfigError("stage_acceptance", rate, remedy)
        added = (rate - below) / (1.0 - below) if below < 1.0 else 0.0
        for place, text in enumerate(texts):
            draw = random.Random(f"{seed}/{text.sample_id}/{text.turn}/{number}")
            rights[place] = tuple(stands or draw.random() < added for stands in rights[place])
            found[place] += (rights[place],)
        below = rate
    return [replace(text, behind=behind) for text, behind in zip(texts, found, strict=True)]


def pattern_text(
    errors: DraftErrors, sample_id: str, turn: int, prompt_length: int, limit: int, seed: int, rank_rate: float = LATER_RANKS
) -> Text:
    """A text whose wrong positions a pattern names (`pair.draft_errors`)."""
    is_wrong = errors.wrong_positions(sample_id, turn, limit)
    known = {position: not is_wrong(position) for position in range(1, limit)}
    return Profile((1.0,), rank_rate).text(sample_id, turn, prompt_length, limit, seed, known)


def judged(columns: RoundColumns, limit: int) -> dict[int, bool]:
    """What a sample's rounds say of its positions: drafts that stood were right, the first that fell was wrong.

    Of the place of a bonus token behind a draft that stood as a whole, and of a plain round's, nobody said anything, but where
    the draft runs on meanwhile (it threw away more than was shown): contradicted there, it went back.
    """
    found: dict[int, bool] = {}
    position = 1
    names = ("num_drafted", "num_accepted", "num_emitted", "num_discarded")
    rounds = list(zip(*(columns[name] for name in names), strict=True))
    runs_on = any(discarded > drafted - accepted for drafted, accepted, _, discarded in rounds)
    for drafted, accepted, emitted, discarded in rounds:
        for place in range(position, position + accepted):
            found[place] = True
        if emitted == accepted + 1 and (accepted < drafted or runs_on):
            found[position + accepted] = accepted == drafted and not discarded
        position += emitted
    return {place: right for place, right in found.items() if place < limit}


def foreseen(columns: RoundColumns) -> dict[int, bool]:
    """By position of a target's own token: whether a foreseeing draft had prepared for it (phase `hit` or `miss`).

    What was prepared stands high in the draft's list, what was not does not, or time did not suffice for it. 0: the prefill's.
    """
    found, position = {}, 0
    for phase, emitted in zip(columns["phase"], columns["num_emitted"], strict=True):
        if phase in ("hit", "miss"):
            found[position] = phase == "hit"
        position += emitted
    return found


def measured_profile(sequences: Iterable[Mapping[int, bool]], longest: int = 8) -> Profile:
    """Rates by run length from judged positions; runs longer than `longest` are pooled. Raises ConfigError without any."""
    stood, asked = [0] * (longest + 1), [0] * (longest + 1)
    for known in sequences:
        run: int | None = 0
        for position in range(1, max(known, default=0) + 1):
            right = known.get(position)
            if right is None:
                run = None  # nobody knows how long the run is that goes on behind
                continue
            if run is not None:
                place = min(run, longest)
                asked[place] += 1
                stood[place] += right
            run = 0 if not right else None if run is None else run + 1
    if not sum(asked):
        raise ConfigError("acceptance", "run folder", "no draft was judged in it: name a run of a method that drafts a chain")
    pooled = sum(stood) / sum(asked)
    return Profile(tuple(s / a if a else pooled for s, a in zip(stood, asked, strict=True)))


def refuse_chain(run: Mapping[str, Any], key: str, folder: str) -> None:
    """Raises ConfigError for the run of a chain of drafts: it holds what the target said of the last, of the others sums."""
    if int(run.get("method_facts", {}).get("method", {}).get("num_processes", 2)) > 2:
        raise ConfigError(key, folder, "a chain's run records no verdicts of its stages by position: name one with one draft")


def recorded_texts(
    samples: Sequence[SampleRecord], rounds: Mapping[tuple[str, int, int, str], RoundColumns], limit: int, seed: int
) -> tuple[list[Text], Profile]:
    """A text for each sample, turn and repeat that the method's arm finished, and the profile that fills what was not judged.

    Repeats are texts of their own: what one repeat left unjudged another may have seen, but timing alone moves that.
    """
    own = [r for r in samples if r.arm == "method" and r.decode_seconds is not None and r.repeat >= 0]
    known = {record.key: judged(rounds[record.key], limit) for record in own}
    profile = measured_profile(known.values())
    texts = []
    for record in own:
        facts = (record.sample_id, record.turn, len(record.prompt_ids), limit, seed)
        drawn = profile.text(*facts, known[record.key], foreseen(rounds[record.key]))
        length = len(record.output_ids)
        texts.append(
            Text(
                *(drawn.sample_id, drawn.turn, drawn.prompt_length, length, limit, record.finish_reason == "eos"),
                *(drawn.right, drawn.rank),
            )
        )
    return texts, profile

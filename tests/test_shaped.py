"""Models of a published size: the circle that they walk, the share that is right, and what a method makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specbench.config.options import ConfigError
from specbench.config.schema import PairConfig
from specbench.engine.request import Outcome, Request
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw
from specbench.methods.chains.autoregressive import Autoregressive
from specbench.methods.chains.speculative import Speculative
from specbench.pair.load import check_pair, load_model, load_tokenizer
from specbench.pair.shaped import SIZES, circle, named_first, parse
from specbench.pair.spec import specify

TOKENS = 100


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def decoded(method: Any, acceptance: str) -> tuple[Outcome, list[int]]:
    """The outcome behind a prompt, and the prompt."""
    spec = specify(PairConfig(target="shaped:tiny", draft=f"shaped:tiny:{acceptance}", target_device="cpu", draft_device="cpu"))
    tokenizer = load_tokenizer(spec.target)
    spec = check_pair(spec, tokenizer)
    assert spec.draft is not None
    prompt = tokenizer("def add(a, b):").input_ids
    models = load_model(spec.target, spec.vocab_size), load_model(spec.draft, spec.draft_vocab_size)
    method.open(Runtime(spec, *models, SamplingLaw(), TOKENS, frozenset()))
    return method.decode(Request("0", 0, tuple(prompt), TOKENS, frozenset(), noise_key=0)), prompt


def test_the_ordinary_ids_form_one_circle() -> None:
    follows = circle(50, frozenset({3, 7}))
    walked, at = [], 0
    for _ in range(48):
        at = int(follows[at])
        walked.append(at)
    assert sorted(walked) == sorted(set(range(50)) - {3, 7}) and at == 0
    assert follows[3] == follows[7] and follows[3] not in (3, 7)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.8, 1.0])
def test_the_share_that_is_right_is_exact(share: float) -> None:
    follows = circle(400, frozenset())
    named, second = named_first(follows, share)
    assert np.sum(named == follows) == share * 400
    assert len(second) == round((1 - share) * 200) and not np.any(named[second] == follows[second])


def test_the_target_walks_the_circle_and_a_draft_is_right_as_often_as_it_says() -> None:
    plain, prompt = decoded(Autoregressive(), "1.0")
    follows = circle(4096, frozenset(load_tokenizer(specify(PairConfig(target="shaped:tiny")).target).all_special_ids))
    expected, at = [], prompt[-1]
    for _ in range(TOKENS):
        at = int(follows[at])
        expected.append(at)
    assert plain.output_ids == expected
    for acceptance in ("0.8", "0.0"):
        outcome, _ = decoded(Speculative(draft_length=4), acceptance)
        assert outcome.output_ids == expected
        right = named_first(follows, float(acceptance))[0] == follows
        # Exactly the leading right tokens of every draft are kept: the walk says which.
        place = 0
        for r in outcome.rounds:
            run = 0
            while run < r.num_drafted and place + run < TOKENS - 1 and right[expected[place + run]]:
                run += 1
            assert r.num_accepted == min(run, r.num_emitted)
            place += r.num_emitted
    assert all(r.num_accepted == 0 for r in outcome.rounds)


def test_a_published_size_is_the_published_one() -> None:
    """Parameters that a token reads, of Llama 3.1 8B 7.50 billion and of Llama 3.2 1B 1.24 (its head is its embedding)."""
    for size, billions in (("8b", 7.50), ("1b", 1.24)):
        hidden, layers, heads, kv_heads, width, vocabulary = SIZES[size]
        attention = 2 * hidden * hidden + 2 * hidden * hidden * kv_heads // heads
        count = layers * (attention + 3 * hidden * width + 2 * hidden) + hidden + hidden * vocabulary
        assert count / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize("name", ["shaped:9b", "shaped:tiny:1.5", "shaped:tiny:often", "shaped:"])
def test_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"pair\.draft=.*possible: shaped:8b"):
        parse(name, "draft")


def test_a_folder_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    folder = Path(specify(PairConfig(target="shaped:tiny")).target.path)
    (folder / "config.json").unlink()
    assert Path(specify(PairConfig(target="shaped:tiny")).target.path) == folder
    assert json.loads((folder / "config.json").read_text())["specbench_shaped"]["size"] == "tiny"

"""OSD's draft learns: acceptance grows with the prompts seen, weights are versioned, the pair's own draft stays as it is."""

from __future__ import annotations

import pytest
import tiny
import torch

from specbench.config.options import ConfigError
from specbench.engine.model import Model
from specbench.engine.request import Outcome
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw
from specbench.method import Method, create_method
from specbench.methods.chains.speculative import Speculative
from specbench.methods.online.osd import OnlineDistillation, Osd

PROMPTS = 3


@pytest.fixture(scope="module")
def around() -> Runtime:
    target = tiny.module("llama")
    draft = tiny.noisy_copy(target, 0.1)
    return tiny.runtime(Model.wrap(target), Model.wrap(draft), max_new_tokens=24)


def seen(method: Method, around: Runtime, passes: int = 3) -> list[Outcome]:
    """The same prompts, again and again, in one life of the method."""
    tiny.opened(method, around)
    try:
        requests = [tiny.request(around, tiny.prompt(7, seed=number), sample_id=str(number)) for number in range(PROMPTS)]
        return [method.decode(request) for _ in range(passes) for request in requests]
    finally:
        method.close()


def acceptance(outcomes: list[Outcome]) -> float:
    rounds = [r for outcome in outcomes for r in outcome.rounds]
    return sum(r.num_accepted for r in rounds) / sum(r.num_drafted for r in rounds)


@pytest.mark.parametrize("positions", ["rejected", pytest.param("all", marks=pytest.mark.deep)])
def test_it_accepts_more_the_more_it_has_seen(around: Runtime, positions: str) -> None:
    before = {name: value.clone() for name, value in around.draft.module.state_dict().items()}  # type: ignore[union-attr]
    learned = seen(Osd(learning_rate=1e-3, lessons=4, positions=positions), around)
    frozen, still = seen(Speculative(), around), seen(Osd(learning_rate=0.0, lessons=4), around)
    assert [o.output_ids for o in learned] == [o.output_ids for o in frozen] == [o.output_ids for o in still]
    assert acceptance(still) == acceptance(frozen), "what learns nothing stays where it is"
    passes = [acceptance(learned[first : first + PROMPTS]) for first in range(0, len(learned), PROMPTS)]
    assert passes == sorted(passes) and passes[-1] > acceptance(frozen) + 0.15
    versions = [r.draft_version for outcome in learned for r in outcome.rounds]
    assert versions[0] == 0 and versions[-1] > 5 and versions == sorted(versions)
    assert sum(r.learn_seconds for outcome in learned for r in outcome.rounds) > 0
    assert not any(r.learn_seconds for outcome in frozen for r in outcome.rounds)
    after = around.draft.module.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before), "the pair's own draft is not touched"


def test_sampled_output_is_the_targets_own(around: Runtime) -> None:
    law = SamplingLaw(1.0, top_k=4)
    warm = tiny.runtime(around.target, around.draft, law, max_new_tokens=24)
    learned, plain = seen(Osd(learning_rate=1e-3, lessons=4), warm, passes=1), seen(Method(), warm, passes=1)
    assert [o.output_ids for o in learned] == [o.output_ids for o in plain]


def test_the_adapter_works_beside_any_draft_model(around: Runtime) -> None:
    node = {"_target_": "specbench.methods.online.osd.OnlineDistillation", "learning_rate": 0.001, "lessons": 4}
    base = {"_target_": "specbench.methods.chains.speculative.Speculative"}
    tree = create_method({**base, "shape": "dynamic", "adapter": node})
    assert tree.needs.scope == "session"
    outcomes = seen(tree, around)
    assert [o.output_ids for o in outcomes] == [o.output_ids for o in seen(Method(), around)]
    assert outcomes[-1].rounds[-1].draft_version > 5


def test_wrong_adapters_are_refused(around: Runtime) -> None:
    with pytest.raises(ConfigError, match=r"method\.adapter='osd'"):
        Speculative(adapter="osd")  # type: ignore[arg-type]
    node = {"_target_": "specbench.methods.online.osd.OnlineDistillation", "lessons": 0}
    with pytest.raises(ConfigError, match=r"method\.adapter\.lessons=0"):
        create_method({"_target_": "specbench.methods.chains.speculative.Speculative", "adapter": node})
    with pytest.raises(ConfigError, match="teaches a draft model"):
        Method(adapter=OnlineDistillation()).open(around)

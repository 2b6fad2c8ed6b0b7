"""Methods at work on a simulated machine, and their outcomes as the records of an ordinary run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from specbench.config.options import ConfigError
from specbench.config.specs import ModelSpec, PairSpec
from specbench.engine.request import Outcome
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw
from specbench.measure.sensors.clock import told_by
from specbench.method import Method, create_method
from specbench.sim.acceptance import Text
from specbench.sim.around import key_of
from specbench.sim.costs import ALONE, BESIDE, TURNS, Costs
from specbench.sim.session import EOS, Script, SimModel, Stage
from specbench.sim.world import World

MODE_OF_DRAFT = {"none": ALONE, "local": TURNS, "worker": BESIDE}
WITHOUT_CONFIDENCE = (None, "fixed", "heuristic", "hf")  # stops that ask nothing of the draft's probabilities


@dataclass
class Played:
    """One method on one machine. busy_seconds: of each simulated process, computing, over all texts."""

    method: Method
    texts: list[Text]
    outcomes: list[Outcome]
    busy_seconds: dict[str, float]

    @property
    def decode_seconds(self) -> float:
        return sum(outcome.decode_seconds for outcome in self.outcomes)

    @property
    def num_tokens(self) -> int:
        """Decoded, without the prefills'."""
        return sum(len(outcome.output_ids) - 1 for outcome in self.outcomes)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.decode_seconds if self.decode_seconds else float("nan")


TAKEN = "take a method whose drafts are a chain of a model or of the text (docs/sim.md)"
FORMS, SOURCES = ("-", "chain"), ("-", "model", "text", "text, else model")  # of drafters; "-": its schedule drafts


def refuse_what_cannot_be_simulated(node: Mapping[str, Any], method: Method, key: str = "method") -> None:
    """Raises ConfigError for methods that ask the models more than which token comes next."""
    needs = method.needs
    asked = [name for name in ("taps", "riders", "layers", "fork") if getattr(needs, name)]
    if asked or needs.scope == "session":
        raise ConfigError(
            key, node.get("_target_"), f"asks {', '.join(asked) or 'the text itself'} of the target: not simulated, {TAKEN}"
        )
    if method.rule not in (None, "greedy_match", "sample_match"):
        raise ConfigError(f"{key}.rule", method.rule, "acceptance is given, and not drawn: leave it null")
    if node.get("stop") not in WITHOUT_CONFIDENCE:
        raise ConfigError(f"{key}.stop", node.get("stop"), "reads how sure the draft is, which nobody recorded: use fixed")
    if node.get("shape", "chain") != "chain":
        raise ConfigError(f"{key}.shape", node.get("shape"), "trees are not simulated: use chain")
    drafter = method.drafter
    if drafter.form not in FORMS or drafter.source not in SOURCES:
        drafts = f"a {drafter.form}" if drafter.form not in FORMS else f"with {drafter.source}"
        raise ConfigError(key, node.get("_target_"), f"drafts {drafts}: not simulated, {TAKEN}")


@contextmanager
def opened(
    node: Mapping[str, Any], costs: Costs, texts: Sequence[Text], key: str = "method"
) -> Iterator[tuple[Method, World, Stage]]:
    """A method that holds simulated models, which have the texts to say. Raises ConfigError, CostError."""
    method = create_method(node, key=key)
    refuse_what_cannot_be_simulated(node, method, key)
    rates, further = min((len(text.behind) for text in texts), default=0), method.needs.stages[1:]
    if rates < len(further):
        remedy = f"one rate for each stage behind the first of the chain ({', '.join(further)}), as it was not recorded"
        raise ConfigError("stage_acceptance", None if not rates else f"{rates} of {len(further)}", remedy)
    mode = MODE_OF_DRAFT[method.needs.draft]
    chain = method.needs.stages or ("draft",)
    world = World(costs.link)
    stage = Stage(world.charge)

    around = costs.around.get(key_of(method), {})

    def model(role: str) -> SimModel:
        place, kind = (None, role) if role == "target" else (chain.index(role), "draft")
        curve = costs.company(role) if mode == BESIDE else costs.curve(role, mode)
        return SimModel(place, stage, curve, costs.prefill[role], mode == BESIDE, around.get(kind, 0.0))

    target = model("target")
    draft = None if mode == ALONE else model(chain[0])
    specs = [ModelSpec(role, role, role, "float32", "cpu", None, "sdpa", False) for role in ("target", "draft")]
    runtime = Runtime(
        PairSpec("simulated", specs[0], None if draft is None else specs[1]),
        target,
        draft if mode == TURNS else None,
        SamplingLaw(),
        max((text.limit for text in texts), default=1),
        frozenset({EOS}),
        load_draft=(lambda: draft) if mode == BESIDE else None,
        load_stage=(lambda name: (name, lambda: model(name))) if mode == BESIDE else None,
        machine=world,
    )
    with told_by(world.now):
        try:
            method.open(runtime)
            yield method, world, stage
        finally:
            method.close()


def play(node: Mapping[str, Any], costs: Costs, texts: Sequence[Text], key: str = "method") -> Played:
    """Decode every text with the method that a configuration node names. Raises ConfigError, CostError."""
    with opened(node, costs, texts, key) as (method, world, stage):
        outcomes = []
        for process in world.processes:
            process.busy_seconds = 0.0  # with what it measured when it opened
        for text in texts:
            stage.script = Script(text)
            outcome = method.decode(stage.script.request)
            wanted = stage.script.tokens[: text.length]
            assert outcome.output_ids == wanted, f"{node.get('_target_')} says something else than the text"
            outcomes.append(outcome)
        return Played(method, list(texts), outcomes, {p.name: p.busy_seconds for p in world.processes})

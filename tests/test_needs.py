"""What a method needs of its target is checked before a folder exists."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from run_folders import BUILTIN, composed
from safetensors.torch import save_file

from specbench.config.compose import compose
from specbench.config.options import ConfigError
from specbench.config.paths import CONF_DIR, MODELS_DIR
from specbench.config.schema import DataConfig, DecodingConfig, RunConfig
from specbench.config.specs import PairSpec
from specbench.measure.records.provenance import folder_hash
from specbench.method import EMPTY, DraftTree, Needs, create_method
from specbench.methods.heads.hydra import HydraHeads
from specbench.methods.heads.medusa import MedusaHeads
from specbench.pair.spec import specify
from specbench.parts.heads.stored import refuse_deeper_tree
from specbench.run.prepare import folder_facts, prepare, refuse_endless_drafts, refuse_too_long, refuse_unmet_needs
from specbench.run.run import run


def test_a_target_that_cannot_do_it_is_refused_before_a_folder_exists(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "gpt2", tiny.module("gpt2"))
    config = compose(
        ["method=layerskip", f"pair.target={folder}", "pair.draft=null", "data.limit=1", f"runs_dir={tmp_path / 'runs'}"]
    )
    with pytest.raises(ConfigError, match=r"pair\.target=.*gpt2.*cannot give layers"):
        run(config)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["method=layerskip", "method.exit_layer=12"], r"method\.exit_layer=12.*has 12 layers.*at most 11"),
        (["method=mirror_sd", "method.exit_layer=99"], r"method\.exit_layer=99.*has 12 layers.*at most 11"),
        (["method=pipespec", "method.stages=[draft,'target:13']"], r"method\.stages=.*target:13.*the target has 12 layers"),
        (["method@baseline=pipespec", "baseline.stages=[no/such/model]"], r"method\.stages=.*no/such/model"),
    ],
)
def test_what_reaches_beyond_the_target_is_refused_before_a_folder_exists(options: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        prepare(composed("data.source=standin", *options))


def test_the_last_layer_but_one_is_an_exit() -> None:
    prepare(composed("data.source=standin", "method=layerskip", "method.exit_layer=11", "method@baseline=mirror_sd"))


METHODS = "specbench.methods."
LOOKED_UP: list[tuple[str, dict[str, str | None], str]] = [
    ("heads.medusa.Medusa", {}, r"method\.heads=null: .* has none of its own; train medusa heads"),
    ("heads.hydra.Hydra", {"heads": "none/there/at/all"}, r"method\.heads=.*no such folder"),
    ("heads.eagle.Eagle", {}, r"method\.heads=null"),
    ("heads.eagle.Eagle", {"heads": "builtin:heads_medusa"}, r"these are medusa heads; the method needs eagle heads"),
    ("text.rest.Rest", {}, r"method\.datastore=null: no datastore there"),
    ("text.rest.Rest", {"datastore": "none"}, r"method\.datastore='none': no datastore there"),
    ("chains.speculative.Speculative", {}, r"pair\.draft=null: .*name one"),
    ("overlap.amusd.Amusd", {}, r"pair\.draft=null: .*name one"),
]


@pytest.mark.parametrize(("name", "options", "said"), LOOKED_UP)
def test_what_options_name_is_looked_up(name: str, options: dict[str, str | None], said: str) -> None:
    method = create_method({"_target_": METHODS + name, **options})
    with pytest.raises(ConfigError, match=said):
        refuse_unmet_needs([method], PairSpec("some", tiny.spec(), None))


def test_a_run_knows_what_lay_in_the_folders_that_its_options_name(tmp_path: Path) -> None:
    """Also where they are named by nothing but their being shipped; a byte more is another folder."""
    shipped = MODELS_DIR / "builtin"
    mine = shutil.copytree(shipped / "heads_hydra", tmp_path / "heads")
    typed = ["method=medusa", "method@baseline=hydra", f"baseline.heads={mine}", "data.source=standin"]
    facts = folder_facts(prepare(composed(*typed)))
    expected = {"method.heads": folder_hash(shipped / "heads_medusa"), "baseline.heads": folder_hash(mine)}
    assert facts == expected and len(set(facts.values())) == 2
    with (mine / "heads.safetensors").open("ab") as file:
        file.write(b"x")
    assert folder_facts(prepare(composed(*typed)))["baseline.heads"] not in expected.values()
    head = "method.stop={_target_: specbench.parts.stops.specdec_pp.SpecDecPlusPlus}"
    assert folder_facts(prepare(composed("method=speculative", head, "data.source=standin"))) == {
        "method.stop.head": folder_hash(shipped / "heads_acceptance")
    }


@pytest.mark.parametrize("name", ["medusa.Medusa", "hydra.Hydra"])
def test_a_tree_deeper_than_the_heads_is_refused_before_they_are_loaded(name: str) -> None:
    heads = f"builtin:heads_{name.partition('.')[0]}"
    pair = specify(composed("pair=builtin").pair)
    paths = [[0] * depth for depth in range(1, 10)]
    deep = create_method({"_target_": METHODS + f"heads.{name}", "heads": heads, "tree": paths})
    with pytest.raises(ConfigError, match=r"method\.tree=.*it is 9 deep, and there are \d heads"):
        refuse_unmet_needs([deep], pair)
    refuse_unmet_needs([create_method({"_target_": METHODS + f"heads.{name}", "heads": heads, "tree": paths[:1]})], pair)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_published_weights_say_how_many_heads_there_are(suffix: str, tmp_path: Path) -> None:
    """Their names do, whatever config.json says or without one; what says nothing is asked again when it is loaded."""
    state = {f"{head}.0.linear.{part}": torch.zeros(2) for head in range(2) for part in ("weight", "bias")}
    file = tmp_path / f"medusa_lm_head.{suffix}"
    torch.save(state, file) if suffix == "pt" else save_file(state, file)
    (tmp_path / "config.json").write_text('{"medusa_num_heads": 1}')
    refuse_deeper_tree(MedusaHeads, [(0,), (0, 0)], [], tmp_path)
    with pytest.raises(ConfigError, match="it is 3 deep, and there are 2 heads"):
        refuse_deeper_tree(MedusaHeads, [(0,), (0, 0), (0, 0, 0)], [], tmp_path)
    file.write_bytes(b"damaged")
    refuse_deeper_tree(MedusaHeads, [(0, 0, 0)], [], tmp_path)
    refuse_deeper_tree(HydraHeads, [(0, 0, 0)], [], tmp_path)


def test_heads_of_another_target_are_refused(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "llama", tiny.module("llama"))
    method = create_method({"_target_": METHODS + "heads.eagle.Eagle", "heads": "builtin:heads_eagle"})
    target = dataclasses.replace(tiny.spec(), name=str(folder), path=str(folder))
    with pytest.raises(ConfigError, match=r"trained for a target of sha256 .*train heads for it"):
        refuse_unmet_needs([method], PairSpec("some", target, None))


def test_missing_heads_take_no_device_and_leave_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbench.run.run.hold", lambda *_: pytest.fail("the device was taken"))
    for options, said in (
        (["method=autoregressive", "method@baseline=medusa", "baseline.heads=none/there/at/all"], r"method\.heads="),
        (["method=speculative", "method.draft_length=99999"], r"method\.draft_length=99999"),
    ):
        with pytest.raises(ConfigError, match=said):
            run(compose([*BUILTIN, *options, "data.source=standin", "data.limit=1", f"runs_dir={tmp_path / 'runs'}"]))
        assert not (tmp_path / "runs").exists()


def test_heads_that_are_there_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: the same way leads to the device where nothing is missing."""

    class Taken(Exception):
        pass

    def taken(*_: object) -> None:
        raise Taken

    monkeypatch.setattr("specbench.run.run.hold", taken)
    with pytest.raises(Taken):
        run(compose([*BUILTIN, "method=eagle", "data.source=standin", "data.limit=1", f"runs_dir={tmp_path / 'runs'}"]))


STOP = {"_target_": "specbench.parts.stops.Stop", "draft_length": 99999}


@pytest.mark.parametrize(
    ("arm", "options", "tokens", "said"),
    [
        ("method", {"draft_length": 99999}, 128, r"method\.draft_length=99999: .*decoding\.max_new_tokens=128.*at most 128"),
        ("method", {"draft_length": 129}, 128, r"method\.draft_length=129"),
        ("method", {"draft_length": 65}, 8, r"method\.draft_length=65: .*at most 64"),
        ("method", {"max_lookahead": 99999}, 128, r"method\.max_lookahead=99999"),
        ("baseline", {"draft_length": 99999}, 128, r"baseline\.draft_length=99999"),
        ("method", {"stop": STOP}, 128, r"method\.stop\.draft_length=99999"),
        ("method", {"num_nodes": 99999}, 128, r"method\.num_nodes=99999: the pair has 2048 positions: at most 2048"),
    ],
)
def test_a_draft_that_no_answer_can_hold_is_refused(arm: str, options: dict[str, object], tokens: int, said: str) -> None:
    config = dataclasses.replace(RunConfig(decoding=DecodingConfig(max_new_tokens=tokens)), **{arm: options})
    with pytest.raises(ConfigError, match=said):
        refuse_endless_drafts(config, 2048)


@pytest.mark.parametrize(
    ("lengths", "context", "limit", "said"),
    [
        ([9, 12], 24, 8, r"data\.max_prompt_tokens=8: all 2 prompts are too long, the shortest has 9 tokens"),
        ([9, 12], 24, None, r"decoding\.max_new_tokens=16: .* 24 positions, .*all 2 prompts are too long, .* has 9 tokens"),
        ([8, 12], 24, 8, None),
        ([99], None, None, None),
    ],
)
def test_prompts_that_are_all_too_long_are_refused(
    lengths: list[int], context: int | None, limit: int | None, said: str | None
) -> None:
    config = RunConfig(decoding=DecodingConfig(max_new_tokens=16), data=DataConfig(max_prompt_tokens=limit))
    with pytest.raises(ConfigError, match=said) if said else contextlib.nullcontext():
        refuse_too_long(config, lengths, context)


def test_what_methods_draft_by_default_is_accepted_with_short_answers() -> None:
    for path in (CONF_DIR / "method").glob("[!_]*.yaml"):
        node = yaml.safe_load(path.read_text())
        config = RunConfig(decoding=DecodingConfig(max_new_tokens=1), method=node, baseline=node)
        refuse_endless_drafts(config, 128)
    refuse_endless_drafts(RunConfig(method={"draft_length": 128, "num_nodes": 99999}), None)


def test_needs_add_up() -> None:
    both = Needs(draft="local", taps=(-1,), scope="session") | Needs(taps=(-1, 2), riders=True)
    assert both == Needs(draft="local", taps=(-1, 2), riders=True, scope="session")
    assert both.of_target == {"taps", "riders"}
    with pytest.raises(AssertionError, match="one draft"):
        Needs(draft="local") | Needs(draft="worker")


def test_nobody_writes_into_the_shared_empty_draft() -> None:
    with pytest.raises(AttributeError, match="EMPTY is shared"):
        EMPTY.num_forwards = 1
    own = DraftTree([])
    own.num_forwards = 1
    assert EMPTY.num_forwards == 0 and EMPTY.tokens == []

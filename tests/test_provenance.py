"""Provenance: what is recorded, what is masked, and hashes that are not computed twice."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from specbench.measure.records import masking, provenance

TOKEN = "hf_" + "AbCdEfGhIj" * 3
WANDB_KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("track.api_key=abc", "track.api_key=***"),
        ("+pair.token=abc", "+pair.token=***"),
        ("hub.hfToken=abc", "hub.hfToken=***"),
        ("db_password=x", "db_password=***"),
        (f"x={TOKEN}", "x=***"),
        (WANDB_KEY, "***"),
        ("https://me:pass@host/x", "https://***@host/x"),
        (f"pair.target_revision={WANDB_KEY}", f"pair.target_revision={WANDB_KEY}"),
        ("decoding.max_new_tokens=64", "decoding.max_new_tokens=64"),
        ("data.max_prompt_tokens=1024", "data.max_prompt_tokens=1024"),
        ("pair.target=meta-llama/Llama-3.1-8B", "pair.target=meta-llama/Llama-3.1-8B"),
        ("method=amusd", "method=amusd"),
        ("tokenizer.pad_token=<pad>", "tokenizer.pad_token=<pad>"),
        ("hub_token_2=abc", "hub_token_2=***"),
        ("auth-header.access_token_value=abc", "auth-header.access_token_value=***"),
    ],
)
def test_mask_argv(argument: str, expected: str) -> None:
    assert masking.mask_argv(["specbench", argument]) == ["specbench", expected]


def test_mask_argv_hides_the_value_after_a_flag() -> None:
    assert masking.mask_argv(["x", "--api-key", "abc", "--limit", "3"]) == ["x", "--api-key", "***", "--limit", "3"]


def test_numbers_are_no_secrets() -> None:
    report = {"method_token": 17, "text": "method_token=17, token: 3", "nested": [{"secret": "x", "password": None}]}
    masked = {"method_token": 17, "text": "method_token=17, token: 3", "nested": [{"secret": "***", "password": None}]}
    assert masking.mask_mapping(report) == masked


def test_masking_takes_linear_time_on_long_words() -> None:
    # One word of a megabyte: a quadratic expression would need hours, and the suite's limit would say so.
    assert len(masking.mask_text("a" * 1_000_000 + "=b")) == 1_000_002


def test_environment_is_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("WANDB_API_KEY", WANDB_KEY)
    monkeypatch.setenv("SOMETHING_PRIVATE", "private-value")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    facts = provenance.collect(["specbench", f"track.api_key={TOKEN}"])
    text = json.dumps(facts)
    assert facts["environment"]["OMP_NUM_THREADS"] == "1"
    assert not any(secret in text for secret in (TOKEN, WANDB_KEY, "private-value"))


def test_collect_names_the_conditions() -> None:
    facts = provenance.collect(["specbench"])
    assert facts["packages"]["versions"]["numpy"] and facts["machine"]["logical_cores"] >= 1
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["gpus"] or facts["gpus_why"]
    assert isinstance(facts["scikit_learn_importable"], bool)
    assert provenance.conditions_hash(facts) == facts["conditions_hash"]
    other = {**facts, "packages": {**facts["packages"], "versions": {**facts["packages"]["versions"], "torch": "0.1"}}}
    assert provenance.conditions_hash(other) != facts["conditions_hash"]
    elsewhere = {**facts, "environment": {**facts["environment"], "SLURM_JOB_ID": "7"}}
    assert provenance.conditions_hash(elsewhere) == facts["conditions_hash"]


def test_measure_does_not_import_torch() -> None:
    folder = Path(provenance.__file__).parent
    present = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    lines = ["import sys", *(f"import specbench.measure.records.{name}" for name in present), "import specbench.run.console"]
    heavy = ("torch", "transformers", "hydra", "omegaconf", "datasets", "wandb")
    code = "\n".join([*lines, f"print([m for m in {heavy} if m in sys.modules])"])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------------------- git
def git(folder: Path, *arguments: str) -> str:
    base = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false"]
    return subprocess.run([*base, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    package = tmp_path / "house" / "specbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("x = 1\n")
    git(package.parent, "init", "-q")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-qm", "one")
    return package


def test_git_clean_dirty_untracked(checkout: Path) -> None:
    clean = provenance.git_facts(checkout)
    assert clean == {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": False, "diff_sha256": None}
    (checkout / "__init__.py").write_text("x = 2\n")
    dirty = provenance.git_facts(checkout)
    (checkout / "new.py").write_text("y = 1\n")
    untracked = provenance.git_facts(checkout)
    (checkout / "new.py").write_text("y = 2\n")
    changed = provenance.git_facts(checkout)
    assert dirty["dirty"] and len({f["diff_sha256"] for f in (clean, dirty, untracked, changed)}) == 4
    assert provenance.git_facts(checkout) == changed


def test_package_installed_inside_a_foreign_checkout_has_no_commit(checkout: Path) -> None:
    installed = checkout.parent / ".venv" / "specbench"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    facts = provenance.git_facts(installed)
    assert facts["commit"] is None and facts["commit_why"]


# ---------------------------------------------------------------------------------------------------- hashes
@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were really read, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen: list[Path] = []
    stream = provenance._stream_sha256

    def counting(path: Path) -> str:
        seen.append(path)
        return stream(path)

    monkeypatch.setattr(provenance, "_stream_sha256", counting)
    return seen


def test_file_sha256_is_right_and_read_once(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"x" * 3_000_000)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert [provenance.file_sha256(path) for _ in range(3)] == [expected] * 3
    assert len(reads) == 1
    path.write_bytes(b"y" * 3_000_001)
    assert provenance.file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    (provenance.cache_folder() / "sha256.json").write_text("damaged")
    assert provenance.file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(reads) == 3


def test_hub_blobs_are_not_read(tmp_path: Path, reads: list[Path]) -> None:
    digest = "ab" * 32
    blob = tmp_path / "models--org--name" / "blobs" / digest
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"large")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert provenance.file_sha256(link) == digest
    assert reads == []


def test_model_and_tokenizer_hash(tmp_path: Path, reads: list[Path]) -> None:
    assert provenance.model_hash(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"w")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    first = provenance.model_hash(tmp_path), provenance.tokenizer_hash(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ x }}")
    second = provenance.model_hash(tmp_path), provenance.tokenizer_hash(tmp_path)
    assert first[0] == second[0] and first[1] != second[1]
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert provenance.model_hash(tmp_path) != first[0]


def test_parameters_are_counted_from_the_headers(tmp_path: Path) -> None:
    """The shipped target's own count, without reading a weight; what cannot be counted is null and no guess."""
    from specbench.config.paths import MODELS_DIR

    folder = MODELS_DIR / "builtin" / "target"
    counted = provenance.stored_parameters(folder)
    assert counted is not None
    assert 2 * counted == pytest.approx((folder / "model.safetensors").stat().st_size, rel=0.01)  # bfloat16
    assert provenance.stored_parameters(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes((9).to_bytes(8, "little") + b"{no json}")
    assert provenance.stored_parameters(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)  # a header as long as the world
    assert provenance.stored_parameters(tmp_path) is None

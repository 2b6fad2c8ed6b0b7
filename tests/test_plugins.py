"""From a configuration node to a method: what may run, and what its constructor takes."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

from specbench.config.compose import compose
from specbench.config.create import allowed_prefixes
from specbench.config.options import ConfigError
from specbench.config.paths import CONF_DIR
from specbench.method import Method, create_method

SPECULATIVE = "specbench.methods.chains.speculative.Speculative"
METHODS = sorted(path.stem for path in (CONF_DIR / "method").glob("*.yaml") if not path.stem.startswith("_"))

MODULE = """
from specbench.method import Method

class Plain(Method):
    def __init__(self, *, gamma: int):
        super().__init__()
        self.gamma = gamma

class Taker(Method):
    def __init__(self, **options):
        super().__init__()
        self.options = options

def not_a_class():
    raise AssertionError("a configuration must not call this")
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an importable module that specbench does not know."""
    (tmp_path / "their_module.py").write_text(MODULE)
    (tmp_path / "their_broken_module.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("their_module", "their_broken_module"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "their_module"


@pytest.mark.parametrize("name", METHODS)
def test_each_yaml_builds_its_method_and_names_every_option(name: str) -> None:
    node = compose([f"method={name}"]).method
    method = create_method(node)
    assert isinstance(method, Method)
    assert type(method).__module__.split(".")[:2] == ["specbench", "methods"]
    assert type(method).__module__.split(".")[3] == name, "the YAML is named as the file, whatever the family"
    declared = set(node) - {"_target_"}
    taken = set(inspect.signature(type(method)).parameters)
    assert taken <= declared, "an option that the YAML does not name can be neither found nor set"
    assert declared <= taken | {"draft_length"}


def test_options_reach_the_constructor() -> None:
    assert create_method({"_target_": SPECULATIVE, "draft_length": 7}).draft_length == 7


@pytest.mark.parametrize(
    ("node", "key", "offer"),
    [
        ({"_target_": SPECULATIVE, "draft_lenght": 3}, "method.draft_lenght", "did you mean method.draft_length?"),
        ({"_target_": SPECULATIVE, "draft_length": 0}, "method.draft_length", "from 1 to 4,096"),
        (
            {"_target_": "specbench.methods.chains.speculative.Speculativ"},
            "method._target_",
            "speculative has: Speculative",
        ),
        ({"_target_": "specbench.methods.nothing.Nothing"}, "method._target_", "fails to import: ModuleNotFoundError"),
        ({"_target_": "specbench.config.paths.Path"}, "method._target_", "is no Method"),
        ({"_target_": "specbench.method.Needs"}, "method._target_", "is no Method"),
        ({"_target_": "os.system", "command": "true"}, "method._target_", "specbench.*"),
        ({"_target_": "specbenchmark.evil.Method"}, "method._target_", "specbench.*"),
        ({"_target_": "their_module.Plain", "gamma": 3}, "method._target_", "allow_targets"),
        ({"_target_": "Speculative"}, "method._target_", "package.module.Class"),
        ({}, "method._target_", "package.module.Class"),
    ],
)
def test_a_wrong_node_names_key_and_remedy(node: dict[str, object], key: str, offer: str, outside: str) -> None:
    with pytest.raises(ConfigError) as raised:
        create_method(node)
    assert raised.value.key == key
    assert offer in str(raised.value)
    assert outside not in sys.modules, "what is not allowed is not even imported"


def test_the_user_may_allow_more(outside: str) -> None:
    node = {"_target_": f"{outside}.Plain", "gamma": 3, "draft_length": None}
    assert create_method(node, [outside]).gamma == 3  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="is no Method"):
        create_method({"_target_": f"{outside}.not_a_class"}, [outside])


def test_a_missing_option_and_one_not_taken(outside: str) -> None:
    with pytest.raises(ConfigError, match=r"baseline\.gamma"):
        create_method({"_target_": f"{outside}.Plain"}, [outside], key="baseline")
    with pytest.raises(ConfigError, match=r"method\.draft_length=4: Plain takes no such option"):
        create_method({"_target_": f"{outside}.Plain", "gamma": 3, "draft_length": 4}, [outside])
    taker = create_method({"_target_": f"{outside}.Taker", "anything": 1, "draft_length": None}, [outside])
    assert taker.options == {"anything": 1, "draft_length": None}  # type: ignore[attr-defined]


def test_a_plugin_that_fails_to_import_is_named(outside: str) -> None:
    with pytest.raises(ConfigError, match=r"their_broken_module fails to import: .*a_library_that_is_not_there"):
        create_method({"_target_": "their_broken_module.Method"}, ["their_broken_module"])


def test_prefixes_end_at_a_package(outside: str) -> None:
    assert allowed_prefixes(["mine", "yours."])[-2:] == ("mine.", "yours.")

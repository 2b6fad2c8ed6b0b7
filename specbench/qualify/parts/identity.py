"""Every method against autoregressive decoding on the built-in pair: greedy and sampled, float32 and bfloat16."""

from __future__ import annotations

from typing import Any

from specbench.check import FAIL, PASS, SKIP, Bench, Result
from specbench.check.identity import greedy_identity, sampled_identity
from specbench.config.compose import compose
from specbench.config.options import ConfigError
from specbench.config.paths import CONF_DIR
from specbench.pair.load import check_pair, load_tokenizer
from specbench.pair.spec import specify
from specbench.qualify.plan import FAILED, NOT_RUN, PASSED, Task, result

TEXTS = ("def add(a, b):\n    ", "class Stack:\n    def __init__(self):\n        self.items = []\n")
FIRST = ("speculative", "amusd", "pearl", "eagle", "hydra", "medusa")  # if time does not last for all
DTYPES = ("float32", "bfloat16")


def run(task: Task) -> dict[str, Any]:
    """In float32 ids must be identical; in bfloat16 a difference at an all but tied pair of logits is no failure."""
    names = sorted(path.stem for path in (CONF_DIR / "method").glob("*.yaml") if not path.stem.startswith("_"))
    names = sorted((name for name in names if name != "autoregressive"), key=lambda name: (name not in FIRST, name))
    rows, missing, failed, checked = [], [], 0, 0
    for name in names:
        for dtype in DTYPES:
            if task.left < 15:
                missing.append(f"{name} in {dtype}")
                continue
            greedy, sampled = identity_of(name, dtype, task.device)
            task.say(f"{name}, {dtype}: {greedy.status}, {sampled.status}")
            rows.append((name, dtype, greedy.detail, sampled.detail))
            failed += FAIL in (greedy.status, sampled.status)
            checked += PASS in (greedy.status, sampled.status)
    verdict = f"{checked} of {len(rows) + len(missing)} method and precision pairs keep the target's ids, {failed} do not"
    verdict += f", {len(missing)} not reached" if missing else ""
    notes = [f"no time was left for {', '.join(missing)}"] if missing else []
    table = {"columns": ("method", "dtype", "greedy", "sampled, T = 1"), "rows": rows}
    status = FAILED if failed else PASSED if checked else NOT_RUN
    return result(status, verdict, tables=[table], notes=notes)


def identity_of(name: str, dtype: str, device: str) -> tuple[Result, Result]:
    """Greedy and sampled identity of one method; a method that the pair has nothing for is skipped with the reason."""
    places = [f"pair.{role}_{what}" for role in ("target", "draft") for what in ("dtype", "device")]
    config = compose([f"method={name}", "pair=builtin", *(f"{p}={dtype if p.endswith('dtype') else device}" for p in places)])
    spec = specify(config.pair, config.engine.attention)
    tokenizer = load_tokenizer(spec.target)
    pair = check_pair(spec, tokenizer)
    bench = None
    try:
        bench = Bench(config.method, pair, [tuple(tokenizer(text).input_ids) for text in TEXTS], config.allow_targets)
        return greedy_identity(bench), sampled_identity(bench, seeds=1)
    except ConfigError as error:
        return Result(SKIP, str(error)), Result(SKIP, "-")
    except Exception as error:
        problem = Result(FAIL, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return problem, problem
    finally:
        if bench is not None:
            bench.close()

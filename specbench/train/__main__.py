"""`python -m specbench.train part=... pair=...`: makes the models that a pair needs (conf/train.yaml lists the options)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from specbench.config.compose import register_search_path
from specbench.config.errors import explain, refuse_numbers_for_flags
from specbench.config.options import ConfigError
from specbench.config.paths import CONF_DIR
from specbench.config.say import of_file, say
from specbench.train.acceptance import train_acceptance_head
from specbench.train.accepted import measure_acceptance
from specbench.train.card import write_pair_card
from specbench.train.common import BUILTIN_FOLDER
from specbench.train.datastore import build_datastore
from specbench.train.evaluate import measure_pair
from specbench.train.heads import train_heads
from specbench.train.loop import choose_device
from specbench.train.models import refine_target, train_draft, train_target
from specbench.train.settings import Settings, settings_from

OK, FAILED, WRONG_OPTION = 0, 1, 2
TRAININGS = {
    "target": train_target,
    "refine": refine_target,
    "draft": train_draft,
    "heads": train_heads,
    "datastore": build_datastore,
    "acceptance_head": train_acceptance_head,
}

ConfigStore.instance().store(name="train_schema", node=Settings)  # which conf/train.yaml begins with


def run(settings: Settings) -> dict[str, Any]:
    """Run one training command."""
    torch.set_num_threads(settings.train.threads)
    choose_device(settings.train.device)  # refused before anything is read
    if settings.part == "card":
        folder = Path(settings.train.out) if settings.train.out else BUILTIN_FOLDER
        facts = (
            measure_pair(folder, settings.train.card_samples, settings.train.new_tokens, 1) if settings.train.measure else None
        )
        return {"part": "card", "card": str(write_pair_card(folder, facts))}
    if settings.part == "acceptance":
        return measure_acceptance(settings)
    return TRAININGS[settings.chosen().kind](settings)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
def main(config: DictConfig) -> None:
    """Command line entry; the last line of stdout is a JSON document."""
    hydra_config = HydraConfig.get()
    try:
        refuse_numbers_for_flags(hydra_config.overrides.task, Settings)
        settings = settings_from(config)
        settings.method_name = hydra_config.runtime.choices.get("method")
        result = run(settings)
        report = Path(settings.train.work) / str(settings.part) / "report.json"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(result, indent=1) + "\n")
    except KeyboardInterrupt:
        say("interrupted; train.resume=true goes on")
        sys.exit(130)
    except ConfigError as error:
        say(str(error))
        sys.exit(WRONG_OPTION)
    except OmegaConfBaseException as error:
        say(explain(error, hydra_config.overrides.task, Settings) or str(error))
        sys.exit(WRONG_OPTION)
    except OSError as error:
        say(of_file(error))
        sys.exit(FAILED)
    print(json.dumps(result))


def in_one_line() -> int:
    """`main`; what Hydra finds wrong with the options is one line too. Returns the exit status."""
    tracebacks = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them its own way
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        if tracebacks or (line := explain(error, sys.argv[1:], Settings)) is None:
            raise
        say(line)
        return WRONG_OPTION
    finally:
        if not tracebacks:
            del os.environ["HYDRA_FULL_ERROR"]
    return OK


def help_page() -> str:
    """The options with their meanings, as conf/train.yaml has them; what Hydra alone reads there is left out."""
    lines = (CONF_DIR / "train.yaml").read_text().splitlines()
    return "\n".join(lines[: lines.index("hydra:")]).rstrip()


if __name__ == "__main__":
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_page())
        sys.exit()
    register_search_path()  # methods of plugins have heads too
    sys.exit(in_one_line())

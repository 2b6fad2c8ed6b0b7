"""The card of trained heads: ``training.json`` and ``README.md`` beside their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHOWN = (1, 2, 3, 5, 10)  # top-n accuracies in the table


def write_heads_card(out: Path, report: dict[str, Any]) -> None:
    """Keep the facts and say them in words."""
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    measured, history = report["calibration"], report["history"]
    lines = [
        f"# {report['family']} heads for {report['distilled_from']}",
        "",
        f"Written by `{report['command']}`; the target (sha256 {report['target_sha256']}) was not changed.",
        "",
        f"{report['parameters'] / 1e6:.3f} M parameters, {history['tokens_seen'] / 1e6:.2f} M tokens seen"
        f" ({report['own_text']:.0%} of the rows written by the target), last training loss {history['train_loss']:.3f} nats.",
        f"Options: {', '.join(f'{name} {value}' for name, value in report['options'].items()) or 'none'}.",
        "",
        f"Measured at {measured['num_positions']} positions of {measured['num_prompts']} texts of the target"
        f" ({measured['text']} from {measured['prompts']}); no evaluation set is in them. Top-n: the text's token was among the"
        " n best candidates. Accepted: the first candidates of this and all shallower depths were right, which is what a chain"
        " of drafts keeps.",
        "",
        f"| depth | {' | '.join(f'top-{n}' for n in SHOWN)} | accepted |",
        f"| --- |{' --- |' * (len(SHOWN) + 1)}",
    ]
    for depth, (row, accepted) in enumerate(zip(measured["accuracies"], measured["acceptance_by_depth"], strict=True), start=1):
        lines.append(f"| {depth} | {' | '.join(f'{sum(row[:n]):.3f}' for n in SHOWN)} | {accepted:.3f} |")
    (out / "README.md").write_text("\n".join(lines) + "\n")

"""The cards: what a trained part is made of (``training.json`` beside it), and what the built-in pair is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specbench.measure.theory.formulas import speedup_sequential

LIMITS = """\
- The target has a few million parameters. It writes text that looks like Python; it does not solve problems. Scores such as
  pass@1 would be near zero.
- It knows Python source, docstrings and the English of documentation. On chat, translation, mathematics or summarisation it
  writes continuations in the manner of documentation: such runs show mechanics, not findings.
- Its acceptance rates and its ratio of the draft model's time to the target's are its own. They say nothing about larger pairs.
- It was trained on sequences of some hundreds of tokens. Longer prompts run (up to 16,384 positions), but the model's text
  beyond the trained range is worse, see the loss by position below.
- Small models repeat themselves, and repeated text is easy to draft: see the share of distinct 4-grams."""


def write_training(out: Path, report: dict[str, Any]) -> None:
    """Keep a part's facts beside its weights, and a short card in words."""
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    lines = [
        f"# {report['part']}",
        "",
        f"Written by `python -m specbench.train part={report['part']}`.",
        "",
        *_training_table([report]),
    ]
    if report.get("removed_for_overlap") is not None:
        lines += ["", _overlap_sentence(report)]
    (out / "README.md").write_text("\n".join(lines) + "\n")


def write_pair_card(folder: Path, facts: dict[str, Any] | None) -> Path:
    """``README.md`` of the pair in `folder`, from each part's ``training.json`` and the measurements (``card.json``).

    `facts`: new measurements, kept as ``card.json``; None: the ones that are there already, if any.
    """
    if facts is not None:
        (folder / "card.json").write_text(json.dumps(facts, indent=1) + "\n")
    elif (folder / "card.json").exists():
        facts = json.loads((folder / "card.json").read_text())
    reports = [json.loads(p.read_text()) for p in sorted(folder.glob("*/training.json"))]
    reports.sort(key=lambda r: (not r["part"].startswith("target"), r["part"]))
    lines = [
        "# The built-in pair",
        "",
        "A deep, narrow Llama with its draft models and heads, trained for this project so that everything runs offline.",
    ]
    lines += ["Weights are bfloat16 safetensors, run in float32 on a CPU; byte-level BPE; end of text is id 0.", ""]
    lines += ["Written by `python -m specbench.train part=card`; numbers in `card.json` and `*/training.json`.", ""]
    lines += ["## What it is not good for", "", LIMITS, "", "## Training", "", *_training_table(reports), ""]
    for report in reports:
        if report.get("note"):
            lines += [f"{report['part']}: {report['note']}", ""]
        if report.get("refined"):
            lines += ["## Refinement against repetition", "", _refinement(report), ""]
        if report.get("loss_by_position"):
            lines += ["Target's loss by position on held-out code, nats per token (context of 4,096 tokens):", ""]
            lines += [*_table(["position", "loss"], [[k, f"{v:.2f}"] for k, v in report["loss_by_position"].items()]), ""]
    lines += _curves(reports)
    if facts:
        lines += _measured(facts)
    for report in reports:
        if report.get("packages"):
            lines += _data(report)
    path = folder / "README.md"
    path.write_text("\n".join(lines).rstrip() + "\n")
    return path


def _training_table(reports: list[dict[str, Any]]) -> list[str]:
    rows = []
    for report in reports:
        history, heldout = report["history"], report["heldout_loss"] or {}
        rows.append(
            [
                report["part"],
                f"{report['layers']} x {report['width']}",
                f"{report['parameters'] / 1e6:.2f} M",
                f"{history['tokens_seen'] / 1e6:.2f} M",
                f"KL {history['train_loss']:.3f}" if report.get("distilled_from") else f"{history['train_loss']:.3f}",
                ", ".join(f"{name} {loss:.2f}" for name, loss in heldout.items()),
            ]
        )
    head = ["part", "layers x width", "parameters", "tokens seen", "last training loss", "held-out loss (nats per token)"]
    return _table(head, rows)


def _curves(reports: list[dict[str, Any]], points: int = 8) -> list[str]:
    """Where each draft's distillation stood on its way, so that a reader sees whether more tokens would have helped."""
    rows = []
    for report in reports:
        curve = report["history"]["curve"]
        if report.get("distilled_from") and curve:
            chosen = curve[:: -(-len(curve) // points)]
            rows.append([report["part"], ", ".join(f"{loss:.2f} at {tokens / 1e6:.1f}" for tokens, loss in chosen)])
    if not rows:
        return []
    return [
        "Running mean of the distillation loss, nats per token at millions of tokens:",
        "",
        *_table(["part", "KL"], rows),
        "",
    ]


def _measured(facts: dict[str, Any]) -> list[str]:
    lines = [
        "## Forward times",
        "",
        f"Median milliseconds over 1 to 16 rows after 256 tokens, {facts['threads']} CPU thread(s):",
        "",
    ]
    times = {name: {int(rows): ms for rows, ms in values.items()} for name, values in facts["milliseconds"].items()}
    columns = sorted(next(iter(times.values())))
    lines += _table(["part", *map(str, columns)], [[name, *(f"{ms[c]:.2f}" for c in columns)] for name, ms in times.items()])
    lines += ["", "## Text", "", f"Greedy, at most {facts['new_tokens']} new tokens, first turns.", ""]
    head = ["data", "prompts", "median prompt tokens", "mean new tokens", "median share of distinct 4-grams"]
    rows = [
        [
            f["name"],
            f["num_prompts"],
            f"{f['median_prompt_tokens']:.0f}",
            f"{f['mean_written_tokens']:.0f}",
            _number(f["median_distinct_4grams"]),
        ]
        for f in facts["data"].values()
    ]
    lines += [*_table(head, rows), "", "## Acceptance and what it predicts", ""]
    lines += [
        "Each draft model read the target's greedy text once; rounds of 8 drafted tokens were replayed on it. `of 4`: mean"
        " tokens kept of 4."
        " `formula`: (1-a^(g+1))/((1-a)(1+gc)) at g = 4 and at the best g up to 8, a being the share of single tokens drafted"
        " right: Leviathan's, for whom the rows of a forward cost nothing. `replay`: the recorded rounds with the measured"
        " times, more rows costing more, at g = 4 and at the best g. `asynchronous`: AMUSD replayed, two devices;"
        " `bound`: 1/c, which no asynchronous method exceeds. None of these is a measured speed-up.",
        "",
    ]
    head = ["draft", "data", "c", "a", *(f"{n}" for n in range(1, 9)), "of 4"]
    head += ["formula g=4", "formula best", "replay g=4", "replay best"]
    rows = []
    for name, by_data in facts["drafts"].items():
        for key, w in by_data.items():
            rows.append(
                [name, facts["data"][key]["name"], _number(w["cost"]), _number(w["token_acceptance"])]
                + [_number(x) for x in w["acceptance_by_position"]]
                + [
                    _number(w["accepted_of_4"]),
                    _number(w["formula_speedup_4"]),
                    _best_formula(w),
                    _number(w["speculative_speedup_4"]),
                ]
                + [f"{w['speculative_speedup_best']:.2f} (g={w['best_draft_length']})"]
                + [_number(w["asynchronous_speedup"]), _number(w["asynchronous_bound"])]
            )
    return [*lines, *_table([*head, "asynchronous", "bound"], rows), ""]


def _best_formula(worth: dict[str, Any]) -> str:
    if worth["token_acceptance"] is None:
        return ""
    by_length = {g: speedup_sequential(worth["token_acceptance"], g, worth["cost"]) for g in range(1, 9)}
    best = max(by_length, key=lambda g: by_length[g])
    return f"{by_length[best]:.2f} (g={best})"


def _data(report: dict[str, Any]) -> list[str]:
    lines = ["## Data", "", _overlap_sentence(report), ""]
    rows = []
    for package in report["packages"]:
        counts = package["train_tokens"]
        rows.append(
            [package["name"], package["version"], package["licence"], *(f"{counts.get(s, 0):,}" for s in report["streams"])]
        )
    shares = ", ".join(f"{name} {share:.0%}" for name, share in report["shares"].items())
    lines += [f"Mix while training: {shares}. Tokens available for training by package:", ""]
    return [*lines, *_table(["package", "version", "licence", *report["streams"]], rows), ""]


def _refinement(report: dict[str, Any]) -> str:
    refined = report["refined"]
    before, after = (sum(losses.values()) / len(losses) for losses in (refined["heldout_loss_before"], report["heldout_loss"]))
    shares = refined["repeated_share"]
    return (
        f"As trained on the corpus the target looped under greedy decoding: {shares[0]:.0%} of the tokens it wrote completed a"
        f" 4-gram it had written before. {refined['step']} more steps of unlikelihood on its own greedy text brought that to"
        f" {shares[-1]:.0%}, and {refined['mixed_back']:.0%} of the unrefined weights were mixed back. The price is likelihood:"
        f" the mean held-out loss rose from {before:.2f} to {after:.2f} nats per token."
    )


def _overlap_sentence(report: dict[str, Any]) -> str:
    files = ", ".join(report["evaluation_files"]) or "none"
    return (
        "Evaluation texts were kept out: every document was compared, by 13-word windows, with"
        f" {report['num_evaluation_texts']} texts of the evaluation sets that were present ({files});"
        f" {len(report['removed_for_overlap'])} documents shared one and were removed (most share only a run of numbers)."
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in [head, ["---"] * len(head), *rows]]

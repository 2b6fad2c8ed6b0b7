"""No secret reaches a file: whatever is stored passes one of these functions.

Masked are values under keys that name a secret (`token`, `api_key`, `password` ...) and strings that look like an access token
wherever they stand. Numbers are never masked: `method_token: 17` in a report is a token id, not a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"

_SECRET_WORDS = {"token", "password", "passwd", "passphrase", "secret", "apikey", "credential", "credentials", "authorization"}
_SECRET_PAIRS = {("api", "key"), ("access", "key"), ("private", "key"), ("auth", "key"), ("secret", "key")}
_CARRIERS = {"value", "header", "string", "env"}
_TRADE = {"pad", "eos", "bos", "unk", "sep", "cls", "mask", "method", "baseline", "first", "next", "per", "draft", "target"}
_SECRET_VALUES = re.compile(
    r"hf_[A-Za-z0-9]{10,}|hf_oauth_[\w.-]{10,}|api_org_[A-Za-z0-9]{10,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
    r"|glpat-[\w-]{16,}|wandb_v\d_\w{16,}|\bsk-[A-Za-z0-9_-]{16,}|xox[abprs]-[A-Za-z0-9-]{10,}|AKIA[0-9A-Z]{16}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"
)
_URL_PASSWORD = re.compile(r"(?<![\w+.-])([\w+.-]+://)[^/\s@:]*:[^/\s@]+@")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
_ASSIGNMENT = re.compile(
    r"(?<![\w.+~/@-])([\w.+~/@-]+)([\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;&}\])\"']+)"
)  # key, sign, value; the key starts where a word starts, so that long words cost linear time
_HARMLESS = re.compile(r"(?i)[+-]?[\d.]+|true|false|null|none|\*\*\*")
_HEX_40 = re.compile(r"(?<![0-9a-fA-F])[0-9a-fA-F]{40}(?![0-9a-fA-F])")  # a W&B key has the form of a git commit


def is_secret_key(key: str) -> bool:
    """Whether a key names a secret by its last word: token, password, api_key ...

    No secrets are plurals (max_new_tokens), words of the trade (pad_token, joules_per_token), reasons (joules_per_token_why).
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", re.split(r"[./@]", key)[-1])
    words = [word for word in re.split(r"[^a-z]+", spaced.lower()) if word]
    if len(words) > 1 and words[-1] in _CARRIERS:
        words.pop()
    if not words:
        return False
    before = words[-2] if len(words) > 1 else ""
    return (words[-1] in _SECRET_WORDS and before not in _TRADE) or (before, words[-1]) in _SECRET_PAIRS


def _mask_assignment(match: re.Match[str]) -> str:
    key, sign, value = match.groups()
    return match[0] if _HARMLESS.fullmatch(value) or not is_secret_key(key) else f"{key}{sign}{MASK}"


def mask_text(text: str) -> str:
    """A text with everything that looks like an access token, a password in a URL or `token=value` masked."""
    text = _URL_PASSWORD.sub(rf"\1{MASK}@", _BEARER.sub(rf"\1 {MASK}", _SECRET_VALUES.sub(MASK, text)))
    return _ASSIGNMENT.sub(_mask_assignment, text)


def mask_mapping(value: Any, key: str = "") -> Any:
    """A copy of nested mappings and lists whose secret strings are masked, by key and by look."""
    if isinstance(value, Mapping):
        return {k: mask_mapping(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [mask_mapping(item, key) for item in value]
    if isinstance(value, str):
        return MASK if value and is_secret_key(key) else mask_text(value)
    return value


def mask_argv(argv: Sequence[str]) -> list[str]:
    """A command line without its secrets: `key=value`, `--key value`, and bare values that look like one.

    A bare 40-hex value is masked (a Weights & Biases key has that form) unless its key names a revision, commit or hash.
    """
    masked: list[str] = []
    hide_next = False
    for argument in argv:
        key, equals, value = argument.partition("=")
        if hide_next and not argument.startswith("-"):
            masked.append(MASK)
        elif equals and value and is_secret_key(key.lstrip("+-~")):
            masked.append(f"{key}={MASK}")
        else:
            text = mask_text(argument)
            commit = equals and re.search(r"(?i)revision|commit|sha|hash", key)
            masked.append(text if commit else _HEX_40.sub(MASK, text))
        hide_next = argument.startswith("-") and not equals and is_secret_key(argument.lstrip("-"))
    return masked

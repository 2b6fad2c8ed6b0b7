"""What the published sets are known by: sums of their files, and of their content whatever file it comes in.

A content sum (`samples.content_digest`) lets an unpacked, repacked or converted copy count as the published set, and catches
a copy of the right name whose prompts were edited: several such HumanEval files are in circulation (see the cards).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Published:
    """Sums of one published set. `content_sha256` is None where the text was not at hand when the sums were taken."""

    file_sha256: str
    content_sha256: str | None


PUBLISHED = {
    "humaneval": Published(
        file_sha256="b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
        content_sha256="a61566145e6855bceb0ac6fa6d10d5d114472c1d6005e4bf213b310a97156840",
    ),
    "mt_bench": Published(
        file_sha256="119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
        content_sha256="07528aa908d5bebeb1cb9b8c5d3303c379afbe03ffc6d2d77d323c20c6625126",
    ),
    "specbench": Published(
        file_sha256="4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04",
        content_sha256="e0a9a01e3af0fe6f410b558f6d3318bedf2db84476352d32c5680378d4deb588",
    ),
    "refactorchat": Published(
        file_sha256="087c6569a9345ebb0c13d382b3644a120fbb8f6de732aad6fba0c624c56b1a2e",
        content_sha256=None,
    ),
}


def is_published(name: str, file_sha256: str, content_sha256: str) -> bool:
    """Whether a file of these sums is the published set of that name; False for names not listed here."""
    known = PUBLISHED.get(name)
    return known is not None and (file_sha256 == known.file_sha256 or content_sha256 == known.content_sha256)

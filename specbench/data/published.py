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
    "gsm8k": Published(
        file_sha256="63330a20a17f416fdfca978ebcd5124f8da5546affb3a079b65a6e8daf42b41f",
        content_sha256="3b09c4aee6f4ab340060b1e13d2e82d507b8b9de59cc616c3f5e3cdad80fa379",
    ),
    "math500": Published(
        file_sha256="4f530d9d3126dca41c12a96e78ec0dd460b7202052ba86101c4da159cea33aac",
        content_sha256="dbfce847e00da3da0a0006c8f9174065db91a52af2ee73ffee98b24cd6f36f20",
    ),
    "aime24": Published(
        file_sha256="98b2449571c23886d67f99224ecdb4e48ad6cf74955b2908f70fbea9d66dead7",
        content_sha256="7b947c318e79db51f28d852de0d1f61709bb19d28abb0388c1b4b42a338ca8ce",
    ),
    "aime25": Published(
        file_sha256="b8835996839caa1d982c5bb9ecaeca636424f0b8ed9f33a40b084feb1c1766d0",
        content_sha256="2495321d72d82008d0dbf7e87addab4f61f315d7af1cff7af50bf7971ba9b22d",
    ),
    "mbpp": Published(
        file_sha256="019b981f7122e39ce58866cf93f4206511c72532cb537bbaf298753a0f128ba7",
        content_sha256="97fc4efdb573a119f23ef5da5901c2a0d72fd9ad0f750f1fec225771fde1f3e8",
    ),
    "livecodebench": Published(
        file_sha256="40ed536492f331ac27b3b68506072366ca1d3a304b92c31d822574e778c87318",
        content_sha256="3a46f3e9dd3fad5639670cecba20b6140bde160bf578a3f180facd98b4e69a26",
    ),
    "swe_bench": Published(
        file_sha256="fb8f2e01529b5093b193797e449522a0fd6d51f61be0885a30a622fb23564ba8",
        content_sha256="d433e601419fb4ca22fc40dc0b8c2d95a3ea91239b15caaf7814db4d9d61ff9e",
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

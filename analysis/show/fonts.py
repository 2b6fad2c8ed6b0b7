"""The figures' font, cut down to the signs that text of ours can hold.

A PDF embeds of a font only what it uses, and to find that out the whole font is read: for DejaVu Sans with its six thousand
glyphs this took half the time of a figure. Signs beyond the cut come from the whole font.
"""

from __future__ import annotations

import atexit
import contextlib
from functools import cache
from pathlib import Path

from matplotlib import font_manager

from specbench.measure.records.scratch import scratch

WHOLE = "DejaVu Sans"
CUT = "specbench Sans"  # another name: the licence of DejaVu asks for it, and the two must not be taken for each other
_RANGES = ((0x20, 0x180), (0x370, 0x400), (0x2010, 0x2070), (0x2190, 0x2300))  # Latin, Greek, punctuation, arrows, mathematics
_NAMES = (1, 3, 4, 6, 16)  # of the name table: family, identifier, full name, PostScript name, typographic family


@cache
def families() -> list[str]:
    """Font families for matplotlib, the cut one first; made once a process, in a folder that goes with it."""
    lifetime = contextlib.ExitStack()
    folder = lifetime.enter_context(scratch("fonts"))
    atexit.register(lifetime.close)
    for weight in ("normal", "bold"):
        whole = font_manager.findfont(font_manager.FontProperties(family=WHOLE, weight=weight))
        path = folder / f"{weight}.ttf"
        _cut(whole, path)
        font_manager.fontManager.addfont(path)
    return [CUT, WHOLE]


def _cut(whole: str, path: Path) -> None:
    from fontTools import subset

    # No substitution and positioning tables: matplotlib's text uses neither, and they are what subsetting is slow on.
    options = subset.Options(glyph_names=True, layout_features=[], legacy_kern=True)
    options.drop_tables += ["FFTM", "GDEF", "GPOS", "GSUB"]
    font = subset.load_font(whole, options)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=[sign for first, end in _RANGES for sign in range(first, end)])
    cutter.subset(font)
    for record in font["name"].names:
        if record.nameID in _NAMES:
            name = record.toUnicode().replace(WHOLE, CUT).replace(WHOLE.replace(" ", ""), CUT.replace(" ", ""))
            record.string = name
    font.save(path)

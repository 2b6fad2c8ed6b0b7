"""door: one command that qualifies an accelerator, and leaves one folder and one page

    python -m specbench.qualify [--out FOLDER] [--device cuda:0] [--minutes 25]

The parts run one after the other, what matters most first, each in a process of its own: a part that crashes, hangs or takes
the device down with it costs itself alone. Each leaves `<part>.json` and the page is written anew behind it, so that whatever
ends the command, what was finished is there. Without an accelerator the same parts run in their CPU form: smaller shapes, and
what only an accelerator has is named as not run.

May be touched: a part is a file in `parts/` and a line in `plan.PARTS`.
"""

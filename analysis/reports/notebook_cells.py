# %% [markdown]
# # Report of finished runs
# Tables and figures of stored runs, by the same functions as `python -m specbench.analysis`. Nothing is run here: give the
# folders of finished runs below, or from outside with papermill: `papermill report.ipynb out.ipynb -y "runs: [runs]"`.

# %%
from IPython.display import HTML, Image, display

from specbench.analysis.derive.conditions import groups
from specbench.analysis.read.frames import load
from specbench.analysis.reports.writing import document
from specbench.analysis.show.document import Block, Document
from specbench.analysis.show.render import block_html
from specbench.analysis.show.style import picture

# %% tags=["parameters"]
runs = ["runs"]  # run folders, or folders that hold some
across = None  # "machines": one configuration by machine, side by side
with_reference = False  # published numbers beside ours

# %%
frames = load(runs)


def show(report: Document) -> None:
    """Headings, notes, tables and figures of a report, in order; what runs say of themselves is text, never markup."""
    for block in report.blocks:
        if block.figure is not None:
            display(Image(picture(block.figure)))
            display(HTML(block_html(Block("text", block.figure.caption))))
        elif block.kind != "contents":
            display(HTML(block_html(block)))


# %% [markdown]
# ## The runs
# One row per run; `specbench.analysis.read.columns` says what each column holds. Runs under different conditions are never
# mixed: every group has a chapter below.

# %%
display(frames.runs[["method", "options", "pair", "data", "num_prompts", "repeats", "speedup", "speedup_low", "speedup_high"]])
for group in groups(frames):
    print(f"conditions {group.number}: {len(group.runs)} runs, baseline {group.conditions['baseline']}")
for item in frames.left_out:
    print(f"left out: {item.folder}: {item.why}")

# %% [markdown]
# ## The report

# %%
show(document(frames, across=across, with_reference=with_reference))

# %% [markdown]
# ## Questions of your own
# `frames.rounds` has a row per target forward: for instance, drafts thrown away by the depth of the draft.

# %%
drafted = frames.rounds[frames.rounds["draft_depth"] > 0]
drafted.groupby(["run", "draft_depth"])["num_discarded"].agg(["count", "mean"]).head(20)

"""What a schedule is worth before anything is measured: formulas, and the schedules played over known right and wrong drafts.

`formulas` are the papers' (independent acceptance), `played` goes round by round through any pattern of errors, `recorded`
through the texts that a draft was held against. Pure Python: nothing here imports the house, numpy or torch.
"""

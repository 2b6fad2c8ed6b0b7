"""One run from start to status: folder, models, warm-up, passes over the prompts in both arms, costs, summary, table.

Order and fairness of the arms are decided here and nowhere else; nothing is printed or written while a clock runs. May import
method, pair, data, engine, processes, measure and config, never a method by name, never the front door.
"""

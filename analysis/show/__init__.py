"""Tables and figures: one table model, its printed forms, one style of figures, and every table and figure of the report.

A new column is one line in the table that shows it, or in `members` where several do; a new form is a template in `forms/`,
which escapes by its own rule. Nothing is estimated here. May import derive, read, measure and config.
"""

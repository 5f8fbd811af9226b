"""The `rs-rlhf data` commands: one thin module each.

Logic does not live here (`data`, `preferences`).
"""

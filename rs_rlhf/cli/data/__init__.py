"""The `rs-rlhf data` commands, from options to a call.

Logic does not live here (`data`, `preferences`).
"""

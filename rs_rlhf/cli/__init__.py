"""The commands, from options to one call.

Logic does not live here; every other room does.
"""

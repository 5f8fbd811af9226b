"""The commands: one thin module each, from options to one call.

Logic does not live here; every other room does.
"""

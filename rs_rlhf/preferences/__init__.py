"""Preference rows: their schema, reading, checking, making, judging and export.

Training on them does not live here (`trainers`).
"""

"""From the scores of many rows to a selection of them: score shards, cuts, near-duplicates, report, writers.

Training on the selection does not live here (`trainers`).
"""

"""Data of the trainers: rows of files as each trainer takes them, and the check that they can be trained on.

Reading of files lives in `data`, of preferences in `preferences`.
"""

"""What a training is watched by: its rollouts, its worst pairs, and the score model's choice before it begins.

Figures and tables are computed in `metrics` and written by `runs`; nothing here changes a loss.
"""

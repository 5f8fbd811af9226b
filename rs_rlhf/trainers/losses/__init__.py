"""What trainers minimise: of pairs and rankings, of dual encoders, and GRPO's log-probabilities in the group form.

How rows are read and laid out does not live here (`data`, `models`); neither do the loops of training.
"""

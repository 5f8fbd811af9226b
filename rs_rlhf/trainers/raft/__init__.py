"""Rejection-sampling fine-tuning: rounds of sampling, keeping the best answers, training on them, and evaluating.

The training itself does not live here (`trainers.sft`), nor does the choice of answers (`preferences.best`).
"""

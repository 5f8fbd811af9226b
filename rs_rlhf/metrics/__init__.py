"""Figures from answers, boxes and scores: plain functions without torch, files or models.

Asking a model for answers does not live here (`evaluation`).
"""

"""Prompts, completions and images that the tests of rewards share."""

QUESTION = "Rural or urban?"
TEXTS = ["urban", "rural", "a river", "many trees and a road"]


def asked(text=QUESTION, system=None):
    turns = [] if system is None else [{"role": "system", "content": system}]
    return [*turns, {"role": "user", "content": text}]


def said(text):
    return [{"role": "assistant", "content": text}]

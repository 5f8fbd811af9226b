"""Causal vision-language models that answer: one interface, run by transformers, vLLM or a chat endpoint.

Judging the answers does not live here (`metrics`, `evaluation`).
"""

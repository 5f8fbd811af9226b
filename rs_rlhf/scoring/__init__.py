"""Groups in, scores out: in this process, or over HTTP with the reward server (`serving`) and its client.

What a score is used for does not live here (`rewards`, `curation`, `evaluation`).
"""

"""Networks and their inputs: the collator and layout of groups, score model, CLIP, tiny models, and policies.

Finding a model by name and batching requests do not live here (`scoring`).
"""

"""TRL's and transformers' trainers extended to images and score models, with their losses and data.

The options of the command line do not live here (`cli`).
"""

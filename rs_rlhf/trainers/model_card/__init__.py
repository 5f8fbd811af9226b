"""The model card beside a trained model: what its run has recorded, as Markdown and as the hub's metadata.

Not here: the card of a curated data set (`curation`), and what a reward server says of its model (`scoring.cards`).
"""

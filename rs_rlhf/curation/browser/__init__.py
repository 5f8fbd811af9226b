"""The page of `rs-rlhf browse`: scored data in the order of their scores, served on this machine.

The cut itself does not live here (`curation.cut`).
"""

"""The reward server: requests in, batches to a scorer, scores out.

What the server and its client share (addresses, tokens, errors) does not live here (`scoring.http`), nor does the
client (`scoring.remote`).
"""

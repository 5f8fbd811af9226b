"""`rs-rlhf init`: from a folder of one's own data to a recipe and the commands of the whole way.

Not here: readers of data and converters, which are those of `data` and `preferences`.
"""

"""lmms-eval's sample files read as results and answers, and declared benchmarks written as its tasks.

Not here: what is exported of a run (`export`).
"""

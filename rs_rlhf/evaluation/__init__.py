"""Benchmarks run on models: declarations, readers, protocols, results, comparison and export.

The figures themselves do not live here (`metrics`).
"""

"""Rows of files to groups and questions, whatever their format: the one reader and the one column resolver.

What makes a row a preference does not live here (`preferences`), nor do pixels (`imagery`).
"""

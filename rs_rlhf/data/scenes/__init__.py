"""Made-up overhead scenes with their classes, captions and facts, and how they are drawn.

Real data are read by the modules beside this folder.
"""

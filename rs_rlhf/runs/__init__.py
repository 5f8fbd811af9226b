"""What every long run needs: atomic files, a log to resume from, progress, tables, plots, pages and the run report.

Nothing here knows a model, and reading data does not live here (`data`).
"""

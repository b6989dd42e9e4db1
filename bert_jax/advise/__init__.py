"""Advice before a run: how to start, model and vocabulary size, epochs, expected loss, time and price.

`sample` reads the text, `vocabulary`, `starting` and `sizes` decide, and `advice` puts the results together. `law` is
fitted to runs of the project (`benchmarks/scaling_grid.py`), whose results are in `runs.json`.
"""

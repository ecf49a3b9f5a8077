"""Benchmarks: each prints a table, with ratios taken in one run. `python -m bench` runs them all."""

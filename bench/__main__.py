"""Runs all benchmarks, one after the other."""

import runpy

for name in ("append", "http", "projections"):
    print(f"\n== bench.{name}", flush=True)
    runpy.run_module(f"bench.{name}", run_name="__main__")

"""Runs all benchmarks but the long one, or that which is named: `python -m bench scale --events 1_000_000`."""

import sys
from importlib import import_module

QUICK = ("append", "http", "projections", "lag")

asked = sys.argv[1:2]
sys.argv[1:2] = []
for name in asked or QUICK:
    print(f"\n== bench.{name}", flush=True)
    import_module(f"bench.{name}").main()

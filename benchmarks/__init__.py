"""Measure this library beside its peers, in one run on one server: `python -m benchmarks`."""

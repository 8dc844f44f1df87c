"""Benchmarks: `make bench`. Ratios and CPU time in one run; never a timed test."""

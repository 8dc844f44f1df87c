"""Whole-system scenarios: the same tests over every backend."""

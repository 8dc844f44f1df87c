"""A seeded world around the application layer: one thread, one clock, one source of chance, faults between all steps.

``python -m tests.simulation --help`` runs it; ``make simulate SEED=… STEPS=…`` too.
"""

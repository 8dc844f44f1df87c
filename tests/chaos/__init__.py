"""Real processes killed under load, then the books: `python -m tests.chaos --runs 200 --seed 1`."""

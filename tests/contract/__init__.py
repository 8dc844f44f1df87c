"""Contract suites: one for each port, over every implementation."""

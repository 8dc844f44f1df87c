"""Use cases over ports: admit, settle, relay. Knows no store, no wire, no Kong."""

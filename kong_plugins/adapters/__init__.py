"""Adapters: the stores, wires and formats behind the ports."""

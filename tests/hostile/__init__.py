"""Tenants who mean harm: generated requests over raw sockets against the whole stack, and what must hold afterwards."""

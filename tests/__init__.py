"""Tests: unit, contract, wire, integration, e2e, bench."""

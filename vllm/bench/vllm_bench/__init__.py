"""Benchmark of an engine direct and through the gateway: load client, servers, figures, table, chart."""

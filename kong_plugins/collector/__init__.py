"""The collector: moves billing events from the ledger's outbox into sinks, and takes them in over HTTP."""

"""The outbox as its readers see it: a consumer group for each sink on every partition's stream."""

from kong_plugins.adapters.outbox.outbox import DeadLetter, Outbox, SinkStatus, connect_outbox
from kong_plugins.adapters.outbox.queue import GroupQueue, consumer_name

__all__ = ["DeadLetter", "GroupQueue", "Outbox", "SinkStatus", "connect_outbox", "consumer_name"]

"""A plugin server for Kong's MsgPack:1 protocol: kong-pdk's PDK object and command line over a listener and an event
engine of our own.

A plugin is a module with

- ``NAME``, ``VERSION`` (``x.y.z``), ``PRIORITY`` (int), ``SCHEMA``: Kong field records of ``config``, as
  in a Lua schema;
- ``Plugin``: ``Plugin(config)`` is called once for each configured row (an exception is a 500 and its text is logged
  by Kong), ``access(kong)``, ``log(kong)`` and Kong's other phases once for each request, ``close()`` (optional) when
  the row is gone. Methods may wait on sockets: every event has its own greenlet. ``kong.response.exit`` never returns;
- ``PROTOCOLS`` (optional): protocols a row may be limited to; ``ENTITY_CHECKS`` (optional): Kong entity checks, with
  fields named ``config.…``;
- ``ON_ERROR`` (optional): ``"closed"`` (default: an exception before the log phase ends the request with 503) or
  ``"open"`` (the request goes on without the plugin).

:func:`serve` runs one or several such modules on one socket.
"""

from kong_plugins.plugin_server.command_line import serve

__all__ = ["serve"]

"""A ledger over TLS (rediss://): the same answers, and no talk with a server whose certificate is not trusted."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from kong_plugins.adapters.ledger import EmbeddedValkey, connect_ledger
from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.holds import HoldRequest, Line, Settlement, SettleStatus
from kong_plugins.domain.usage import Evidence, Usage
from kong_plugins.domain.windows import FixedWindow, Unit

LINE = Line("daily", FixedWindow(Unit.DAY), TOTAL, 1000, 100)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str) -> None:
    """Pass bytes both ways until either side ends."""
    there_reader, there_writer = await asyncio.open_unix_connection(target)

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.close()

    await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer), return_exceptions=True)


@pytest.fixture
def tls_port(tmp_path: Path, authority: trustme.CA) -> Iterator[int]:
    """A Valkey behind a TLS port of 127.0.0.1, which is yielded. (The wheel's own server is built without TLS.)"""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    loop = asyncio.new_event_loop()
    with EmbeddedValkey(tmp_path / "data") as server:
        path = urlsplit(server.url).path

        async def serve() -> asyncio.Server:
            return await asyncio.start_server(lambda r, w: relay(r, w, path), "127.0.0.1", 0, ssl=context)

        listening = loop.run_until_complete(serve())
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        yield int(listening.sockets[0].getsockname()[1])
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        listening.close()
    loop.close()


def test_a_request_is_held_and_settled_over_tls(tls_port: int, tmp_path: Path) -> None:
    """Hold, settle and settle again, with the server's certificate checked."""
    url = f"rediss://127.0.0.1:{tls_port}/0?ssl_ca_certs={tmp_path / 'ca.pem'}"
    ledger = connect_ledger(url, timeout_s=5)
    assert ledger.hold(HoldRequest("acme", "h1", (LINE,), 60_000_000)).admitted
    settlement = Settlement("acme", "h1", Usage(30, 12), Evidence.EXACT, b"{}")
    assert ledger.settle(settlement).posted == (("daily", 42),)
    assert ledger.settle(settlement).status is SettleStatus.REPEATED
    (balance,) = ledger.balances("acme")
    assert (balance.state.committed, balance.state.held) == (42, 0)
    ledger.close()


def test_a_server_that_nobody_vouches_for_gets_nothing(tls_port: int) -> None:
    """Without the authority's certificate: no hold, and an error that says what is wrong."""
    ledger = connect_ledger(f"rediss://127.0.0.1:{tls_port}/0", timeout_s=5)
    with pytest.raises(LedgerUnavailable, match=r"(?i)certificate"):
        ledger.hold(HoldRequest("acme", "h1", (LINE,), 60_000_000))
    ledger.close()

"""The durable spool: what it took is there again after anything, in order, for one process at a time, within bounds."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import gevent
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kong_plugins.adapters.spool import (
    DurableSpool,
    SpoolLimits,
    file_stem,
    ledger_address,
    spool_bytes_max,
    spool_directory,
)
from kong_plugins.adapters.spool_file import SpoolFile, SpoolFileError
from kong_plugins.adapters.spool_postings import decode, encode
from kong_plugins.application.ports import Posting, Recording, SpoolUnavailable
from kong_plugins.domain.attempts import AnswerKept
from kong_plugins.domain.holds import Outcome, Settlement
from kong_plugins.domain.usage import Evidence, Usage
from tests.chaos.disks import Disk, why_no_disks

ADDRESS = "redis://127.0.0.1:6379/0"


def _as_kong_sends_it(text: str) -> bool:
    """UTF-8, or single bytes as lone surrogates."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") == text
    except UnicodeEncodeError:
        return False


texts = st.text(st.characters(exclude_categories=[])).filter(_as_kong_sends_it)


def recording(number: int, size: int = 10) -> Recording:
    return Recording("tenant_a", f"e{number}", b"x" * size)


def ids(spool: DurableSpool, count: int = 100) -> list[str]:
    return [entry.posting.event_id for entry in spool.oldest(count) if isinstance(entry.posting, Recording)]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[DurableSpool]:
    spool = DurableSpool(tmp_path / "spool", ADDRESS)
    yield spool
    spool.close()


@given(
    st.builds(
        Settlement,
        texts,
        texts,
        st.builds(Usage, st.integers(10, 2**31), st.integers(10, 2**31), st.integers(0, 10), st.integers(0, 10)),
        st.sampled_from(Evidence),
        st.binary(),
        outcome=st.sampled_from(Outcome),
        reversal=st.binary(),
        answer=st.binary(),
        kept=st.sampled_from(AnswerKept),
    )
    | st.builds(Recording, texts, texts, st.binary())
)
def test_a_posting_is_the_same_after_a_way_through_the_file(posting: Posting) -> None:
    """Every field of it, also bytes that were no UTF-8."""
    assert decode(encode(posting)) == posting


@given(st.binary(max_size=40))
@example(b"\xc1")  # msgpack says nothing at all of it
def test_what_is_no_posting_is_told_apart(data: bytes) -> None:
    """A damaged row is an error with a reason, never another posting."""
    with pytest.raises(ValueError, match=r"."):
        decode(data)


def test_order_is_that_of_arrival_and_concurrent_appends_are_all_there(spool: DurableSpool) -> None:
    """Those that come while a commit is made share the next one; none overtakes another."""
    writers = [gevent.spawn(spool.append, recording(number)) for number in range(50)]
    gevent.joinall(writers, raise_error=True)
    assert ids(spool) == [f"e{number}" for number in range(50)]
    assert (spool.waiting, spool.depth) == (50, 50)


def test_what_was_removed_is_gone_and_the_rest_waits(spool: DurableSpool) -> None:
    """Counts follow, and removing twice changes nothing."""
    for number in range(3):
        spool.append(recording(number))
    entries = spool.oldest(2)
    spool.remove(entries)
    spool.remove(entries)
    assert ids(spool) == ["e2"]
    assert (spool.sums.waiting, spool.sums.size) == (1, len(encode(recording(2))))


def test_the_next_process_finds_it(tmp_path: Path) -> None:
    """Closed or not: what was appended waits for whoever comes."""
    first = DurableSpool(tmp_path, ADDRESS)
    first.append(recording(1))
    first.close()
    second = DurableSpool(tmp_path, ADDRESS)
    assert second.waiting == 0
    second.adopt()
    assert ids(second) == ["e1"]
    second.append(recording(2))
    assert ids(second) == ["e1", "e2"]
    second.close()


def test_two_processes_never_share_a_file(tmp_path: Path) -> None:
    """Each has its own while it lives; what one leaves the other adopts, before its own, and drains."""
    one, other = DurableSpool(tmp_path, ADDRESS), DurableSpool(tmp_path, ADDRESS)
    one.append(recording(1))
    other.append(recording(2))
    other.adopt()
    assert ids(other) == ["e2"]
    one.close()
    other.adopt()
    assert other.depth == 2
    assert ids(other) == ["e1"]
    other.remove(other.oldest(1))
    assert ids(other) == ["e2"]
    other.adopt()
    third = DurableSpool(tmp_path, ADDRESS)
    third.append(recording(3))  # into the file that was given back
    assert len(list(tmp_path.glob("*.db"))) == 2
    other.close()
    third.close()


def test_ledgers_do_not_mix(tmp_path: Path) -> None:
    """A posting goes to the ledger that it was meant for."""
    one = DurableSpool(tmp_path, ADDRESS)
    one.append(recording(1))
    one.close()
    other = DurableSpool(tmp_path, "redis://127.0.0.1:6379/1")
    other.adopt()
    assert other.depth == 0
    other.close()


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    """Events and answers of tenants: the directory and every file is this user's alone."""
    spool = DurableSpool(tmp_path / "deep" / "spool", ADDRESS)
    spool.append(recording(1))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "deep" / "spool").iterdir()}
    assert stat.S_IMODE((tmp_path / "deep" / "spool").stat().st_mode) == 0o700
    assert len(modes) >= 3
    assert set(modes.values()) == {0o600}
    spool.close()


@pytest.mark.parametrize("limits", [SpoolLimits(rows=2), SpoolLimits(size=2 * len(encode(recording(1))))])
def test_a_full_spool_refuses_and_says_what_to_do(tmp_path: Path, limits: SpoolLimits) -> None:
    """By rows or by bytes; what it has stays, and there is room again when some of it is gone."""
    spool = DurableSpool(tmp_path, ADDRESS, limits=limits)
    spool.append(recording(1))
    spool.append(recording(2))
    with pytest.raises(SpoolUnavailable, match=r"is full .* TOKEN_QUOTA_SPOOL_MAX_MB"):
        spool.append(recording(3))
    assert ids(spool) == ["e1", "e2"]
    spool.remove(spool.oldest(1))
    spool.append(recording(4))
    assert ids(spool) == ["e2", "e4"]
    spool.close()


def test_answers_for_retries_never_take_the_room_of_settlements(tmp_path: Path) -> None:
    """Above half full they are left out, and the retry is told so."""
    spool = DurableSpool(tmp_path, ADDRESS, limits=SpoolLimits(size=2_000))
    with_answer = Settlement("t", "h", Usage(1, 1), Evidence.EXACT, b"{}", answer=b"a" * 1_200, kept=AnswerKept.KEPT)
    spool.append(with_answer)
    spool.append(with_answer)
    kept = [entry.posting for entry in spool.oldest(2)]
    assert [(each.answer, each.kept) for each in kept if isinstance(each, Settlement)] == [
        (b"a" * 1_200, AnswerKept.KEPT),
        (b"", AnswerKept.TOO_LARGE),
    ]
    spool.close()


def test_a_deferred_posting_comes_when_it_is_due_and_one_set_aside_never(tmp_path: Path) -> None:
    """Also in another process; both are counted apart."""
    now_ms = 1_000
    spool = DurableSpool(tmp_path, ADDRESS, clock_ms=lambda: now_ms)
    for number in range(3):
        spool.append(recording(number))
    late, bad, _ = spool.oldest(3)
    spool.defer(late, "error of its own", 2.0)
    spool.defer(bad, "poison", None)
    assert ids(spool) == ["e2"]
    assert (spool.waiting, spool.depth, spool.sums.aside) == (1, 2, 1)
    assert spool.due(10) == ()
    spool.close()
    now_ms = 3_000
    later = DurableSpool(tmp_path, ADDRESS, clock_ms=lambda: now_ms)
    later.adopt()
    (due,) = later.due(10)
    assert (due.posting, due.failures) == (recording(0), 1)
    later.close()


def test_a_row_that_cannot_be_read_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    """It blocks nobody, and stays to be looked at."""
    spool = DurableSpool(tmp_path, ADDRESS)
    spool.append(recording(1))
    spool.append(recording(2))
    (path,) = tmp_path.glob("*.db")
    with sqlite3.connect(path) as database:
        database.execute("UPDATE postings SET posting = x'00' WHERE id = 'e1'")
    assert ids(spool) == ["e2"]
    assert spool.sums.aside == 1
    spool.close()
    file = SpoolFile(path, ADDRESS)
    (row,) = file.aside(10)
    assert (row.posting_id, row.failures) == ("e1", 1)
    assert row.reason
    file.retry_all()
    assert (file.sums.waiting, file.sums.aside) == (2, 0)
    file.close()


def test_a_file_that_is_no_spool_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged file costs itself only: the next number is taken, and the log says which to look at."""
    bad = tmp_path / f"{file_stem(ADDRESS)}-0.db"
    bad.write_bytes(b"no database at all, " * 100)
    spool = DurableSpool(tmp_path, ADDRESS)
    spool.append(recording(1))
    assert ids(spool) == ["e1"]
    assert any(str(bad) in record.getMessage() for record in caplog.records)
    spool.close()
    assert bad.read_bytes().startswith(b"no database")


def test_a_newer_format_is_not_touched(tmp_path: Path) -> None:
    """After a downgrade the newer version's postings wait for it."""
    path = tmp_path / "x.db"
    SpoolFile(path, ADDRESS).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(SpoolFileError, match="newer version"):
        SpoolFile(path, ADDRESS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_without_permission_it_says_what_to_set(tmp_path: Path) -> None:
    """At the start, not at the first outage."""
    tmp_path.chmod(0o500)
    with pytest.raises(SpoolUnavailable, match="TOKEN_QUOTA_SPOOL_DIR"):
        DurableSpool(tmp_path / "spool", ADDRESS)


def test_no_directory_is_said_at_the_start(tmp_path: Path) -> None:
    """A file where the directory is to be."""
    (tmp_path / "spool").write_text("")
    with pytest.raises(SpoolUnavailable, match="TOKEN_QUOTA_SPOOL_DIR"):
        DurableSpool(tmp_path / "spool", ADDRESS)


def test_closed_it_takes_nothing(tmp_path: Path) -> None:
    """The caller is told, and writes the event into the log."""
    spool = DurableSpool(tmp_path, ADDRESS)
    spool.close()
    with pytest.raises(SpoolUnavailable):
        spool.append(recording(1))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://user:secret@host:6379/0", "redis://host:6379/0"),
        ("unix:///run/valkey.sock?db=2&password=secret", "unix:///run/valkey.sock?db=2"),
        ("redis+sentinel://:secret@a:1,b:2/name/3", "redis+sentinel://a:1,b:2/name/3"),
    ],
)
def test_no_secret_is_written(url: str, address: str) -> None:
    """A password may also change while postings wait."""
    assert ledger_address(url) == address


def test_where_it_is() -> None:
    """What the operator says, else beside Kong's files, else this user's state."""
    assert spool_directory({"TOKEN_QUOTA_SPOOL_DIR": "/a", "KONG_PREFIX": "/b"}) == Path("/a")
    assert spool_directory({"KONG_PREFIX": "/b"}) == Path("/b/token-quota-spool")
    assert spool_directory({}).parts[-3:] == ("state", "token-quota", "spool")
    assert spool_bytes_max({"TOKEN_QUOTA_SPOOL_MAX_MB": "3"}) == 3 * 2**20
    with pytest.raises(SpoolUnavailable, match="TOKEN_QUOTA_SPOOL_MAX_MB"):
        spool_bytes_max({"TOKEN_QUOTA_SPOOL_MAX_MB": "much"})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.EROFS])
def test_a_disk_that_takes_nothing_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """Full, or no file left to this process: it said so a thousand times, and left two thousand files behind. It works
    again by itself."""
    tried: list[str] = []

    def refuse(path: str, *_: object) -> int:
        tried.append(path)
        raise OSError(number, os.strerror(number))

    spool = DurableSpool(tmp_path, ADDRESS)
    with monkeypatch.context() as patch:
        patch.setattr("kong_plugins.adapters.spool_file.os.open", refuse)
        with pytest.raises(SpoolUnavailable, match="is its disk full"):
            spool.append(recording(1))
    assert len(tried) == 1
    assert caplog.records == []
    spool.append(recording(2))
    assert ids(spool) == ["e2"]
    spool.close()


def test_a_small_disk_filled_and_freed(tmp_path: Path) -> None:
    """A real one: nothing that was refused is half there, nothing that was taken is lost, also what could not be
    removed while it was full."""
    if why := why_no_disks(tmp_path):
        pytest.skip(why)
    with ExitStack() as resources:
        disk = Disk(tmp_path / "small", 1, resources)
        disk.fill()
        spool = DurableSpool(disk.path / "spool", ADDRESS)
        with pytest.raises(SpoolUnavailable, match="is its disk full"):
            spool.append(recording(1))
        assert len(list((disk.path / "spool").iterdir())) <= 2
        disk.free()
        spool.append(recording(2))
        disk.fill()
        with pytest.raises(SpoolUnavailable, match="is its disk full"):
            spool.append(recording(3, size=2**16))
        disk.free()
        spool.append(recording(4))
        disk.fill()
        spool.remove(spool.oldest(1))
        assert ids(spool) == ["e4"]
        disk.free()
        spool.append(recording(5))
        spool.close()
        again = DurableSpool(disk.path / "spool", ADDRESS)
        again.adopt()
        assert ids(again) == ["e4", "e5"]
        again.close()


def test_a_volume_that_it_filled_by_itself_is_emptied_again(tmp_path: Path) -> None:
    """SQLite's log alone filled four megabytes with 166 postings, which then could not be removed, and everything that
    came went behind them for ever."""
    if why := why_no_disks(tmp_path):
        pytest.skip(why)
    with ExitStack() as resources:
        disk = Disk(tmp_path / "small", 4, resources)
        spool = DurableSpool(disk.path, ADDRESS)
        taken = 0
        with pytest.raises(SpoolUnavailable, match="is its disk full"):  # noqa: PT012 - until there is no room
            while True:
                spool.append(recording(taken, size=2000))
                taken += 1
        assert taken > 500
        left = list(range(taken))
        while left:
            entries = spool.oldest(100)
            assert [each.posting for each in entries] == [recording(number, size=2000) for number in left[:100]]
            spool.remove(entries)
            left = left[100:]
        assert (spool.waiting, spool.sums.size) == (0, 0)
        spool.append(recording(1))
        assert ids(spool) == ["e1"]
        spool.close()


def test_a_writer_that_ended_before_it_began_is_replaced(spool: DurableSpool) -> None:
    """As it does of a lack of memory: whoever appended waited for it for ever."""
    ended = gevent.Greenlet()
    ended.kill()
    spool._writer = ended
    spool.append(recording(1))
    assert ids(spool) == ["e1"]

"""Every event that was recorded between Kong and stock kong-pdk, played again, byte for byte but for the ids."""

from __future__ import annotations

import pytest
from plugin_server_client import Connection, Worker, pack
from plugin_server_probe import pack_script
from plugin_server_process import ServerProcess
from plugin_server_recordings import DATA, events_of, frames_of, put_id

# The answers of `fake-` cases were written by hand, most of them wrong on purpose; `unknown-root` called a name that is
# not under `kong`, which the PDK object cannot spell.
CASES = [
    (path.name, case)
    for path in sorted(DATA.glob("*.jsonl"))
    for case in frames_of(path.name)
    if not case.startswith("fake-") and case != "unknown-root" and events_of(path.name, case)
]


@pytest.mark.parametrize(("file", "case"), CASES)
def test_replays_the_recording(ours: ServerProcess, worker: Worker, file: str, case: str) -> None:
    """Kong gets the same calls and the same end; where stock gave no answer, it gets one now."""
    connection = Connection(ours.path, 5)
    for event in events_of(file, case):
        instance_id = worker.start(script=pack_script(**{event.phase: event.script}))
        event_id = None
        for number, frame in enumerate(event.frames):
            if number == 0:
                raw = put_id(frame.raw, "InstanceId", event.instance_id, instance_id)
            else:
                raw = put_id(frame.raw, "EventId", frame.value[3][0]["EventId"], event_id)
            kind, msgid, error, result = connection.exchange(raw)
            assert (kind, msgid, error) == (1, frame.value[1], None)
            event_id = result["EventId"]
            # Stock gave up here (dropped connection, lost event): the plugin's script ended, so the event does.
            assert pack(result["Data"]) == pack("ret" if frame.data is None else frame.data)
    connection.close()


def test_the_replay_covers_the_recordings() -> None:
    """The parser finds events in every file, and events that stock did not finish."""
    assert {file for file, _ in CASES} == {path.name for path in DATA.glob("*.jsonl")}
    assert len(CASES) > 200
    assert sum(not event.ended for file, case in CASES for event in events_of(file, case)) > 10

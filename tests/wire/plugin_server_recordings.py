"""Recorded frames of Kong's, case by case, and the events in them."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from plugin_server_client import TERMINAL, pack, unpack

DATA = Path(__file__).parents[1] / "data" / "kong"


@dataclass(frozen=True)
class Frame:
    """``answer`` is the recorded answer's bytes; None where the server of the recording gave none."""

    raw: bytes
    value: Any
    answer: bytes | None

    @property
    def data(self) -> Any:
        """What the plugin told Kong: a PDK call or ``ret``; None where it came to no answer or to an error."""
        answer = None if self.answer is None else unpack(self.answer)
        return answer[3]["Data"] if answer and answer[2] is None else None


@dataclass
class RecordedEvent:
    """A HandleEvent and the Steps that followed it. ``ended``: the recorded server answered to the end."""

    phase: str
    instance_id: Any
    frames: list[Frame] = field(default_factory=list)

    @property
    def script(self) -> list[list[Any]]:
        """The PDK calls that the recorded plugin made."""
        return [[f.data["Method"], f.data["Args"]] for f in self.frames if f.data is not None and f.data != "ret"]

    @property
    def ended(self) -> bool:
        data = self.frames[-1].data
        return data == "ret" or (data is not None and data["Method"] in TERMINAL)


@cache
def frames_of(file: str) -> dict[str, list[Frame]]:
    """Requests of Kong's by case, in order, each with its answer."""
    cases: dict[str, list[Frame]] = {}
    case = ""
    asked: dict[int, tuple[str, int]] = {}
    for line in (DATA / file).read_text().splitlines():
        record = json.loads(line)
        if record["ev"] == "case":
            case = record["name"]
            cases.setdefault(case, [])
        elif record["ev"] == "frame":
            raw = base64.b64decode(record["b64"])
            value = unpack(raw)
            if record["dir"] == "kong->server":
                asked[record["conn"]] = (case, len(cases[case]))
                cases[case].append(Frame(raw, value, None))
            elif isinstance(value, list) and value[0] == 1 and (where := asked.pop(record["conn"], None)):
                name, index = where
                asking = cases[name][index]
                cases[name][index] = Frame(asking.raw, asking.value, raw)
    return cases


def events_of(file: str, case: str) -> list[RecordedEvent]:
    """The events of a case."""
    events: list[RecordedEvent] = []
    open_events: dict[int, RecordedEvent] = {}
    for frame in frames_of(file)[case]:
        argument = frame.value[3][0]
        if isinstance(argument, dict) and "EventId" in argument:
            event = open_events.get(argument["EventId"])
            if event is None:
                continue
            event.frames.append(frame)
        elif frame.value[2] == "plugin.HandleEvent":
            event = RecordedEvent(argument["EventName"], argument["InstanceId"], [frame])
            if frame.answer is not None and frame.data is None:
                continue  # "no plugin instance"
            events.append(event)
            if frame.answer is not None:
                open_events[unpack(frame.answer)[3]["EventId"]] = event
    return events


def put_id(raw: bytes, key: str, old: object, new: object) -> bytes:
    """A recorded frame with an id replaced, every other byte as it was."""
    before, after = pack(key) + pack(old), pack(key) + pack(new)
    assert before in raw
    head, _, tail = raw.rpartition(before)
    return head + after + tail

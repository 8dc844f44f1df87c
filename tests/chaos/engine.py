"""The engine's stand-in with a journal that outlives it: `FILE`, then the stand-in's own options.

A line for each request that it takes (id, client's name, prompt) and for each token of it; so a kill leaves behind what
was generated until then.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request

from kong_plugins.engine_sim.__main__ import main
from kong_plugins.engine_sim.engine import Job
from kong_plugins.engine_sim.sequence import SamplingParams, Step
from kong_plugins.engine_sim.service import Service

CLIENT_HEADER = "x-chaos"


@dataclass(slots=True)
class Ran:
    """A request as the engine knows it. ``prompt`` counts once its first token came, as in the engine's counters."""

    id: str
    client: str
    prompt: int
    generated: int = 0

    @property
    def usage(self) -> tuple[int, int]:
        return (self.prompt, self.generated) if self.generated else (0, 0)


def read_journal(path: Path) -> dict[str, Ran]:
    """Requests by id. A line that a kill cut off tells nothing."""
    found: dict[str, Ran] = {}
    for line in _lines(path):
        if "prompt" in line:
            found[line["id"]] = Ran(line["id"], line["client"], line["prompt"])
        else:
            found[line["id"]].generated += 1
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                yield json.loads(line)


def keep_journal(path: Path) -> None:
    """What is begun here, and each token of it, is in the journal before anybody else hears of it."""
    journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tell(line: dict[str, object]) -> None:
        os.write(journal, json.dumps(line).encode() + b"\n")

    begin = Service.begin

    def begin_and_tell(
        service: Service,
        request: Request,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        salt: str | None = None,
    ) -> Job:
        job = begin(service, request, prompts, params, salt)
        id_, push = request.headers["x-request-id"], job.push
        tell({"id": id_, "client": request.headers.get(CLIENT_HEADER, ""), "prompt": job.prompt_tokens})

        def push_and_tell(step: Step) -> None:
            tell({"id": id_})
            push(step)

        job.push = push_and_tell  # type: ignore[method-assign]
        return job

    Service.begin = begin_and_tell  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    keep_journal(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))

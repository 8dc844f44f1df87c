"""Trying an engine out over HTTP: six short chat requests, its model list and its metrics page."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kong_plugins.adapters.engine_metrics import EngineMetricsError, read_counters
from kong_plugins.application.engine_check import Answer, Counters, Observations, Usage

TIMEOUT_S = 60.0
METRICS_WAIT_S = 3.0  # an engine counts a moment after its answer
TOKENS = 8  # enough for events after the first
WORDS = 420  # more than three cache blocks of 128 tokens
TEXT_FIELDS = ("content", "reasoning", "reasoning_content")


class Probe:
    """One engine. ``url``: its API's base as OpenAI's SDKs take it (``http://host:8000/v1``)."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"not an HTTP address: {url!r}; an engine's is like http://127.0.0.1:8000/v1")
        self._url = url.rstrip("/")
        self._root = self._url.removesuffix("/v1")
        self._key = api_key

    def observe(self, model: str | None = None) -> Observations:
        """Try everything, with ``model`` or the first that is served. Generates about fifty tokens.

        Never raises for what the engine does or does not: that is what the observations say.
        """
        models, length = self._models()
        name = model or (models[0] if models else "")
        sent_id = uuid.uuid4().hex
        before, trouble = self._counters()
        # New each time, or an earlier check's prompt would be in the cache.
        prompt = f"{sent_id} " + "count the tokens " * (WORDS // 3)
        salt = uuid.uuid4().hex
        base = {"model": name, "messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS}
        usage = {"include_usage": True, "continuous_usage_stats": True}
        salted = {**base, "cache_salt": salt}
        whole = self._whole(salted, sent_id)
        if whole.status == 400:  # perhaps it is the salt that it does not know
            whole = self._whole(base, sent_id)
            salted = base
        if whole.good:
            again = self._whole(salted, sent_id)
            other_salt = self._whole({**base, "cache_salt": salt[::-1]}, sent_id)
            asked = self._stream({**base, "stream": True, "stream_options": usage}, sent_id)
            unasked = self._stream({**base, "stream": True}, sent_id)
            priority = self._whole({**base, "max_tokens": 1, "priority": 1}, sent_id)
        else:
            again = other_salt = asked = unasked = priority = whole
        seen = Observations(
            models=models,
            max_model_len=length,
            sent_id=sent_id,
            whole=whole,
            again=again,
            other_salt=other_salt,
            asked=asked,
            unasked=unasked,
            priority=priority,
            before=before,
            metrics_error=trouble,
        )
        return replace(seen, after=self._counters_after(before, seen.answers)) if before is not None else seen

    def _models(self) -> tuple[tuple[str, ...], int | None]:
        try:
            with self._open("models", None, "") as response:
                served = [entry for entry in json.load(response)["data"] if isinstance(entry, dict)]
            names = tuple(str(entry["id"]) for entry in served)
        except (OSError, ValueError, KeyError, TypeError):
            return (), None
        length = served[0].get("max_model_len") if served else None
        return names, length if isinstance(length, int) else None

    def _counters(self) -> tuple[Counters | None, str]:
        try:
            page = read_counters(self._root)
        except (EngineMetricsError, ValueError) as error:
            return None, str(error)
        return Counters(page.prompt, page.completion, page.cached), ""

    def _counters_after(self, before: Counters, answers: Sequence[Answer]) -> Counters | None:
        """Counters once they have moved by what the answers said, or as they are when that takes too long."""
        usages = [answer.usage for answer in answers if answer.good and answer.usage is not None]
        prompt = before.prompt + sum(usage.prompt for usage in usages)
        completion = before.completion + sum(usage.completion for usage in usages)
        deadline = time.monotonic() + METRICS_WAIT_S
        while True:
            now, _ = self._counters()
            done = now is not None and now.prompt >= prompt and now.completion >= completion
            if done or time.monotonic() > deadline:
                return now
            time.sleep(0.1)

    def _open(self, path: str, body: Mapping[str, Any] | None, sent_id: str) -> Any:
        headers = {"Content-Type": "application/json"}
        if sent_id:
            headers["X-Request-Id"] = sent_id
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}/{path}", data, headers)  # noqa: S310 the scheme is checked above
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310

    def _whole(self, body: Mapping[str, Any], sent_id: str) -> Answer:
        try:
            with self._open("chat/completions", body, sent_id) as response:
                answer = json.load(response)
                echoed = response.headers.get("x-request-id", "")
            return Answer(200, _usage(answer), echoed)
        except urllib.error.HTTPError as error:
            return Answer(error.code, error=_told(error))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            return Answer(0, error=f"{type(error).__name__}: {error}")

    def _stream(self, body: Mapping[str, Any], sent_id: str) -> Answer:
        usage, texts, counted = None, 0, 0
        try:
            with self._open("chat/completions", body, sent_id) as response:
                echoed = response.headers.get("x-request-id", "")
                for line in response:
                    if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
                        continue
                    event = json.loads(line[5:])
                    found = _usage(event)
                    usage = found or usage
                    if _has_text(event):
                        texts += 1
                        counted += found is not None
            return Answer(200, usage, echoed, texts, counted)
        except urllib.error.HTTPError as error:
            return Answer(error.code, error=_told(error))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            return Answer(0, error=f"{type(error).__name__}: {error}")


def _usage(answer: Mapping[str, Any]) -> Usage | None:
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(completion, int):
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return Usage(prompt, completion, cached if isinstance(cached, int) else None)


def _has_text(event: Mapping[str, Any]) -> bool:
    return any((choice.get("delta") or {}).get(name) for choice in event.get("choices") or () for name in TEXT_FIELDS)


def _told(error: urllib.error.HTTPError) -> str:
    return " ".join(error.read(300).decode(errors="replace").split())

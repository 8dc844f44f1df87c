"""The engine: jobs wait, run in one batch, and get one token per sequence and step; aborts and deaths end them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from kong_plugins.engine_sim.answers import answer_for
from kong_plugins.engine_sim.errors import ConnectionCut, engine_died
from kong_plugins.engine_sim.faults import DieHow, Faults
from kong_plugins.engine_sim.metrics import EngineMetrics
from kong_plugins.engine_sim.options import EngineOptions
from kong_plugins.engine_sim.prefix_cache import PrefixCache
from kong_plugins.engine_sim.sequence import Generation, SamplingParams, Step
from kong_plugins.engine_sim.vocabulary import Vocabulary


class Job:
    """One HTTP request's sequences (prompts times n) and the steps its reader has not taken yet."""

    def __init__(self, sequences: Sequence[Generation], n: int, salt: str | None, faults: Faults, now: float) -> None:
        self.sequences = sequences
        self.n = n
        self.salt = salt
        self.faults = faults
        self.arrived = now
        self.not_before = 0.0  # when its first token may come
        self.last_step = 0.0
        self.aborted = False
        self._failure: Exception | None = None
        self._steps: list[Step] = []
        self._news = asyncio.Event()

    @property
    def generated(self) -> int:
        return sum(len(sequence.tokens) for sequence in self.sequences)

    @property
    def prompt_tokens(self) -> int:
        """As usage counts them: each prompt once, however many choices it has."""
        return sum(len(sequence.prompt) for sequence in self.sequences[:: self.n])

    @property
    def cached_tokens(self) -> int:
        return self.sequences[-1].cached

    @property
    def created_tokens(self) -> int:
        return self.sequences[0].created

    @property
    def reasoning_tokens(self) -> int:
        return sum(sequence.reasoning for sequence in self.sequences)

    @property
    def over(self) -> bool:
        return self.aborted or self._failure is not None or all(one.finish for one in self.sequences)

    def push(self, step: Step) -> None:
        self._steps.append(step)
        self._news.set()

    def fail(self, failure: Exception) -> None:
        self._failure = failure
        self._news.set()

    def abort(self) -> None:
        self.aborted = True
        self._news.set()

    async def batches(self) -> AsyncIterator[list[Step]]:
        """Steps as they come, several at once when the reader is slower than the engine.

        Raises:
            ApiError: the engine died.
            ConnectionCut: the connection is to end here.
        """
        while True:
            await self._news.wait()
            self._news.clear()
            steps, self._steps = self._steps, []
            if steps:
                yield steps
            elif self._failure is not None:
                raise self._failure
            elif self.over:
                return
            if not self._steps and self.over:
                self._news.set()

    async def finished(self) -> None:
        """Wait for the end; raises as `batches`."""
        async for _ in self.batches():
            pass


class Engine:
    """Runs jobs inside the current event loop, one ticker for all of them."""

    def __init__(self, options: EngineOptions, vocabulary: Vocabulary, metrics: EngineMetrics) -> None:
        self._options = options
        self._vocabulary = vocabulary
        self._metrics = metrics
        self._cache = PrefixCache(options.block_size, options.num_gpu_blocks)
        self._waiting: deque[tuple[Job, Generation]] = deque()
        self._running: list[tuple[Job, Generation]] = []
        self._wake = asyncio.Event()
        self.faults = options.faults
        self.dead = False

    def submit(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, salt: str | None, faults: Faults, form: str
    ) -> Job:
        """Queue a request. ``form`` is the answer's form, as `answer_for` takes it.

        Raises:
            ApiError: the engine is dead.
        """
        if self.dead:
            raise engine_died()
        reasons = self._options.reasoning_parser is not None
        sequences = [
            Generation(
                self._vocabulary,
                prompt,
                params,
                answer_for(self._vocabulary, form, prompt, choice, reasons=reasons, json_object=params.json_object),
                index=place * params.n + choice,
                room=self._options.max_model_len - len(prompt),
                reasons=reasons,
            )
            for place, prompt in enumerate(prompts)
            for choice in range(params.n)
        ]
        job = Job(sequences, params.n, salt, faults, asyncio.get_running_loop().time())
        self._waiting.extend((job, sequence) for sequence in sequences)
        self._report()
        self._wake.set()
        return job

    def abort(self, job: Job) -> None:
        """The client went away: nothing more is generated, what was generated stays counted."""
        if not job.over:
            job.abort()
            self._drop(job)

    def kill(self) -> None:
        """The engine process dies under every request it has."""
        self.dead = True
        for job in {job for job, _ in (*self._running, *self._waiting)}:
            job.fail(engine_died())
            self._drop(job)

    def reset(self) -> None:
        """Alive, without faults (running requests lose theirs too) and with an empty prefix cache."""
        self.dead = False
        self.faults = Faults()
        for job, _ in (*self._running, *self._waiting):
            job.faults = Faults()
            job.not_before = 0.0
        self._cache.clear()
        self._wake.set()

    def take_faults(self) -> Faults:
        """Faults for a request that arrives now."""
        faults = self.faults
        if faults.requests is not None:
            left = faults.requests - 1
            change = {**{name: getattr(faults, name) for name in Faults.__slots__}, "requests": left}
            self.faults = Faults(**change) if left else Faults()
        return faults

    def _drop(self, job: Job) -> None:
        for sequence in job.sequences:
            if sequence.scheduled:
                self._keep_blocks(job, sequence)
        self._running = [entry for entry in self._running if entry[0] is not job]
        self._waiting = deque(entry for entry in self._waiting if entry[0] is not job)
        self._report()

    def _keep_blocks(self, job: Job, sequence: Generation) -> None:
        if self._options.enable_prefix_caching:
            self._cache.insert([*sequence.prompt, *sequence.tokens[:-1]], job.salt)

    def _report(self) -> None:
        size = self._options.block_size
        held = sum(-(-(len(one.prompt) + len(one.tokens)) // size) * size for _, one in self._running)
        self._metrics.load(len(self._running), len(self._waiting), held)

    async def run(self) -> None:
        """The ticker; runs until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            self._schedule(loop.time())
            stepped = self._tick(loop.time())
            if not stepped:
                await self._sleep_until_work(loop)
                due = loop.time()
                continue
            faulty = self.faults.token_delay_ms
            due += (self._options.token_delay_ms if faulty is None else faulty) / 1000
            wait = due - loop.time()
            if wait < 0:
                due = loop.time()  # A busy core makes steps longer; it never makes the next ones shorter.
            await asyncio.sleep(max(0.0, wait))

    async def _sleep_until_work(self, loop: asyncio.AbstractEventLoop) -> None:
        later = [job.not_before for job, _ in self._running if job.not_before > loop.time()]
        self._wake.clear()
        try:
            await asyncio.wait_for(self._wake.wait(), min(later) - loop.time() if later else None)
        except TimeoutError:
            return

    def _schedule(self, now: float) -> None:
        scheduled = False
        while self._waiting and len(self._running) < self._options.max_num_seqs:
            job, sequence = self._waiting.popleft()
            sequence.scheduled = True
            job.not_before = job.not_before or now + job.faults.first_token_delay_ms / 1000
            self._metrics.queue_s.observe(now - job.arrived)
            if self._options.enable_prefix_caching:
                sequence.cached = self._cache.match(sequence.prompt, job.salt)
                sequence.created = self._cache.insert(sequence.prompt, job.salt)
                self._metrics.queries.inc(len(sequence.prompt))
                self._metrics.hits.inc(sequence.cached)
            self._running.append((job, sequence))
            scheduled = True
        if scheduled:
            self._report()

    def _tick(self, now: float) -> int:
        """One engine step. Returns how many tokens it processed, prompts included."""
        processed = 0
        ended: list[Job] = []
        for job, sequence in list(self._running):
            if job.over or now < job.not_before or self._fault_stops(job):
                continue
            if not sequence.tokens:
                processed += len(sequence.prompt) - sequence.cached
                self._metrics.prefilled(len(sequence.prompt), sequence.cached)
                self._metrics.first_token_s.observe(now - job.arrived)
            else:
                self._metrics.next_token_s.observe(now - job.last_step)
            job.push(sequence.step())
            processed += 1
            self._metrics.generated.inc()
            if sequence.finish:
                self._end(job, sequence, now)
                ended.append(job)
        for job, _ in self._running:
            job.last_step = now
        if ended:
            self._running = [entry for entry in self._running if not entry[1].finish]
            self._report()
        if processed:
            self._metrics.iteration.observe(processed)
        return processed

    def _fault_stops(self, job: Job) -> bool:
        faults = job.faults
        if faults.die_after_tokens is not None and job.generated >= faults.die_after_tokens:
            if faults.die_how is DieHow.ENGINE:
                self.kill()
            else:
                cut = faults.die_how in {DieHow.EOF, DieHow.RESET}
                job.fail(ConnectionCut(faults.die_how is DieHow.RESET) if cut else engine_died())
                self._drop(job)
            return True
        return faults.hang_after_tokens is not None and job.generated >= faults.hang_after_tokens

    def _end(self, job: Job, sequence: Generation, now: float) -> None:
        self._keep_blocks(job, sequence)
        metrics = self._metrics
        metrics.success[sequence.finish or "stop"].inc()
        metrics.request_prompt.observe(len(sequence.prompt))
        metrics.request_generated.observe(len(sequence.tokens))
        metrics.request_computed.observe(len(sequence.prompt) - sequence.cached)
        metrics.params_max_tokens.observe(sequence.limit)
        metrics.request_s.observe(now - job.arrived)
        first = sequence.index - sequence.index % job.n
        choices = job.sequences[first : first + job.n]
        if all(choice.finish for choice in choices):
            metrics.params_n.observe(job.n)
            metrics.request_generated_max.observe(max(len(choice.tokens) for choice in choices))

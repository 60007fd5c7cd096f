"""Every metric of the server, once.

The numbers of a process are one array of float64, in memory that it may share: what a worker has counted
can be read while it runs and after it was killed. An array has one writer, in one thread; an aligned
float64 is written whole, so a reader finds each number as it was at some moment, never half of it. Behind
the numbers lies a text, the models served, whose length is written last.
"""

import functools
import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from mmap import mmap
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest

from holdfast.errors import ServiceError
from service.common import background
from service.engine.admission import Held
from service.engine.report import BatchReport, SessionEvent
from service.store.protocol import ACK_LEVELS
from service.store.safety import StoreUsage
from service.telemetry import process_stats
from service.telemetry.families import (
    SECONDS,
    CounterFamily,
    GaugeFamily,
    HistogramFamily,
    InfoFamily,
    LabelledFamily,
    ModelLoads,
)
from service.telemetry.rpc_metrics import NUMBER_COUNT, RpcFamilies, RpcMetrics, rpc_labels

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_NUMBERS_BYTES = 16384
_TEXT_BYTES = 16384
SIZE_BYTES = _NUMBERS_BYTES + _TEXT_BYTES
"""Of the array, half of which is used, and the text."""

STALLED_AFTER_S = 10.0
"""An event loop that has not turned for so long is stuck."""

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_REASONS = sorted(kind.reason for kind in ServiceError.__subclasses__())
_REASON_INDEX = {reason: index for index, reason in enumerate(_REASONS)}
_EVENT_OF_REASON = {
    "SESSION_EXPIRED": SessionEvent.EXPIRED,
    "SESSION_LOST": SessionEvent.LOST,
    "STORE_REGRESSED": SessionEvent.REGRESSED,
}


class ServedModel(NamedTuple):
    """Labels of a model that is served; the fingerprint in hexadecimal."""

    model: str
    version: str
    fingerprint: str


class Metrics:
    """Counts what the engine and others do; `scrape` gives the text.

    Args:
        memory: SIZE_BYTES for the numbers, zeros or what another process counts there; by default its own.

    Attributes:
        registry: Of prometheus_client; collects from the numbers.
        restarts: Counter of workers started again.
        model_loads: What becomes of model files.
        loop_lag_s: Histogram of how late the event loop is.
        tasks: Gauge of the tasks of the event loop.
        store_up: Gauge, 1 while the store answers.
        store_safe: Gauge, 1 while its settings and its disk are such that it keeps sessions.
        workers: Gauge of processes that serve; a process sets its own to 1.
        waiting_limit, hot_limit_bytes: Gauges of bounds.
    """

    def __init__(self, memory: mmap | None = None) -> None:
        self.registry = CollectorRegistry()
        shared = memoryview(bytearray(SIZE_BYTES) if memory is None else memory)
        self._numbers = shared[:_NUMBERS_BYTES].cast("d")
        self._text = shared[_NUMBERS_BYTES:].cast("B")
        self._taken = 0
        self._cpu_seen_s = 0.0
        self._has_seen_store = False
        self._gauges: list[GaugeFamily] = []
        self._steps = self._counter("steps", "Steps committed: tokens applied.")
        self._chunks = self._counter("chunks", "Chunks committed.")
        self._replays = self._counter("replays", "Chunks answered from the record.")
        self._conflicts = self._counter("conflicts", "Commits that found another record than expected.")
        text = "Chunks answered with an error, and calls refused because of their caller."
        self._errors = self._labelled("errors", text, "reason", _REASONS)
        self._acknowledged = self._labelled(
            "acknowledged_chunks",
            "Chunks answered, replays included, by the level reached.",
            "level",
            [str(level) for level in ACK_LEVELS],
        )
        self._session_events = self._labelled(
            "session_events",
            "Events of sessions; lost, expired and regressed count every chunk that finds this.",
            "event",
            [event.name.lower() for event in SessionEvent],
        )
        self._batch_size = self._histogram("batch_size", "Chunks run together.", _SIZES)
        self._queue_s = self._histogram("queue_seconds", "Time that a chunk waits before it runs.")
        self._load_s = self._histogram("state_load_seconds", "One read of cold states.")
        self._run_s = self._histogram("run_seconds", "One batch through the model.")
        self._commit_s = self._histogram("commit_seconds", "One commit of a batch.")
        self._chunk_s = self._histogram("chunk_seconds", "Time of a chunk from arrival to answer.")
        self._loaded = self._counter(
            "loaded_sessions", "Sessions read from the store because they were not in memory."
        )
        self._committed_bytes = self._counter("committed_bytes", "Bytes of records offered to the store.")
        self._reruns = self._counter("reruns", "Parts of failed batches that ran again.")
        self._halts = self._counter("halted_runs", "Runs of a model ended because they took too long.")
        text = "Model files that arrived while serving; a refused one counts again when it changes."
        loads = self._labelled("model_loads", text, "outcome", ("loaded", "refused"))
        self.restarts = self._counter("worker_restarts", "Workers started again after one ended.")
        self._store_reconnects = self._counter(
            "store_reconnects", "Times that the store was reached again after it was not."
        )
        self.loop_lag_s = self._histogram(
            "event_loop_lag_seconds", "Delay with which the event loop wakes up."
        )
        self._cpu_s = self._counter("process_cpu_seconds", "User and system time of all processes.", "")
        self._task_errors = self._labelled(
            "task_errors",
            "Failures of background tasks, which continue; the log says what failed.",
            "task",
            background.TASKS,
        )
        self._task_errors_seen = [0] * len(background.TASKS)
        self._rpcs = {labels[2]: RpcMetrics(labels, self._take(NUMBER_COUNT)) for labels in rpc_labels()}
        self.registry.register(RpcFamilies(list(self._rpcs.values())))
        self._counted = self._taken  # what follows is about now and is not added up
        self.store_up = self._gauge("store_up", "1 while the store answers.", min)
        self.store_safe = self._gauge(
            "store_safe", "1 while the store is known to keep what it acknowledges.", min
        )
        self._store_persists = self._gauge(
            "store_persists", "1 while the store's last writes of its files succeeded.", min
        )
        self._store_keys = self._gauge(
            "store_keys",
            "Keys of all users of the store: sessions, and deleted ones for an hour.",
            max,
        )
        self._store_bytes = self._gauge(
            "store_memory_bytes", "Memory of the store; of a cluster's fullest primary.", max
        )
        self._store_limit_bytes = self._gauge(
            "store_memory_limit_bytes", "Limit of the store's memory; 0 means none.", max
        )
        self._store_suspect = self._gauge(
            "store_version_suspect", "1 while the store's version may have known holes.", max
        )
        self._store_replicas = self._gauge(
            "store_replicas", "Replicas connected; of the primary of a cluster that has fewest.", min
        )
        self.workers = self._gauge("workers", "Processes that serve.")
        self._streams = self._gauge("streams", "Open streams.")
        self._waiting_chunks = self._gauge("waiting_chunks", "Chunks taken and not answered.")
        self.waiting_limit = self._gauge("waiting_chunks_limit", "Limit of waiting chunks.")
        self._waiting_bytes = self._gauge(
            "waiting_bytes", "Bytes of waiting chunks and of unwritten replies."
        )
        self._hot_sessions = self._gauge("hot_sessions", "Sessions whose state is in memory.")
        self._hot_bytes = self._gauge("hot_state_bytes", "Memory of hot sessions.")
        self.hot_limit_bytes = self._gauge("hot_state_limit_bytes", "Limit of the memory of hot sessions.")
        text = "Model files in the folder that cannot be served."
        self.model_loads = ModelLoads(loads, self._gauge("models_refused", text, max))
        self.tasks = self._gauge("tasks", "Tasks of the event loop, sampled every few seconds.")
        self._resident_bytes = self._gauge(
            "process_resident_memory_bytes", "Resident memory of all processes.", prefix=""
        )
        self._open_fds = self._gauge("process_open_fds", "Open descriptors of all processes.", prefix="")
        self._max_fds = self._gauge(
            "process_max_fds", "Limit of open descriptors of one process.", min, prefix=""
        )
        self._start_time_s = self._gauge(
            "process_start_time_seconds", "When the server began, since the epoch.", min, prefix=""
        )
        self._beat_s = self._take(1)
        text = "1 for each model served."
        self.registry.register(InfoFamily("holdfast_model_info", text, ServedModel._fields, self.models))
        built = [[_version()]]
        self.registry.register(
            InfoFamily("holdfast_build_info", "1 for the running version.", ["version"], lambda: built)
        )

    def scrape(self) -> bytes:
        """Returns all metrics in the text format."""
        return generate_latest(self.registry)

    def absorb(self, other: "Metrics") -> None:
        """Adds what another has counted; not its gauges."""
        numbers, added = self._numbers, other._numbers  # noqa: SLF001 -- its own class
        for index in range(self._counted):
            numbers[index] += added[index]

    def rise_to(self, floor: "Metrics") -> None:
        """Raises what is counted to a floor, and the floor to what is counted.

        Sums of times that are added in another order differ in their last bit, and a counter that falls,
        be it by so little, counts from zero again to Prometheus.
        """
        for index in range(self._counted):
            highest = max(self._numbers[index], floor._numbers[index])  # noqa: SLF001 -- its own class
            self._numbers[index] = floor._numbers[index] = highest  # noqa: SLF001

    def join_gauges(self, others: "Sequence[Metrics]") -> None:
        """Shows the gauges and models of several processes as one."""
        if not others:
            return
        for index, gauge in enumerate(self._gauges):
            gauge.set(gauge.joins([other._gauges[index].value for other in others]))  # noqa: SLF001
        self.serves({model for other in others for model in other.models()})

    def beat(self) -> None:
        """Notes that the event loop turns, the time that the process has taken, and what failed in it."""
        self._beat_s[0] = time.monotonic()
        cpu_s = process_stats.cpu_s()
        self._cpu_s.inc(cpu_s - self._cpu_seen_s)
        self._cpu_seen_s = cpu_s
        counts = background.error_counts()
        for index, (count, seen) in enumerate(zip(counts, self._task_errors_seen, strict=True)):
            self._task_errors.inc(index, count - seen)
        self._task_errors_seen = counts

    def look_at_process(self) -> None:
        """Shows what the process uses; takes a microsecond for each open descriptor."""
        usage = process_stats.usage()
        self._resident_bytes.set(usage.resident_bytes)
        self._open_fds.set(usage.open_fds)
        self._max_fds.set(usage.max_fds)
        self._start_time_s.set(usage.started_s)

    def add_process(self, other: "Metrics") -> None:
        """Adds what another process uses that serves nobody; it began first."""
        self._resident_bytes.set(self._resident_bytes.value + other._resident_bytes.value)  # noqa: SLF001
        self._open_fds.set(self._open_fds.value + other._open_fds.value)  # noqa: SLF001
        self._start_time_s.set(other._start_time_s.value)  # noqa: SLF001

    def silent_s(self) -> float:
        """Returns the seconds since the last beat, in this process or another of the machine."""
        return time.monotonic() - self._beat_s[0]

    def holds(self, held: Held) -> None:
        """Shows what the process holds."""
        self._streams.set(held.streams)
        self._waiting_chunks.set(held.chunks)
        self._waiting_bytes.set(held.size_bytes)

    def keeps_hot(self, session_count: int, size_bytes: int) -> None:
        """Shows the sessions in memory."""
        self._hot_sessions.set(session_count)
        self._hot_bytes.set(size_bytes)

    def store_changed(self, is_up: bool) -> None:
        """The store came, or has gone."""
        if is_up and self._has_seen_store:
            self._store_reconnects.inc()
        self._has_seen_store |= is_up
        self.store_up.set(is_up)

    def store_uses(self, usage: StoreUsage) -> None:
        """Shows what the store said when last looked at."""
        self._store_persists.set(usage.persists)
        self._store_keys.set(usage.keys)
        self._store_bytes.set(usage.memory_bytes)
        self._store_limit_bytes.set(usage.memory_limit_bytes)
        self._store_replicas.set(usage.replicas)
        self._store_suspect.set(bool(usage.suspicion))

    def rpc(self, name: str) -> RpcMetrics:
        """Returns what counts an rpc, by the name of its method."""
        return self._rpcs[name]

    # -- models -------------------------------------------------------------------------------

    def serves(self, models: "set[ServedModel]") -> None:
        """Shows which models are served; as many as there is room for."""
        rows = sorted(models)
        while len(data := json.dumps(rows).encode()) > _TEXT_BYTES - 4:
            rows.pop()
        self._text[:4] = bytes(4)
        self._text[4 : 4 + len(data)] = data
        self._text[:4] = len(data).to_bytes(4, "little")

    def models(self) -> list[ServedModel]:
        """Returns the models served; none while they change."""
        size = int.from_bytes(self._text[:4], "little")
        data = bytes(self._text[4 : 4 + size])
        if not size or int.from_bytes(self._text[:4], "little") != size:
            return []
        try:
            return [ServedModel(*row) for row in json.loads(data)]
        except ValueError:  # it was written meanwhile
            return []

    # -- the engine ---------------------------------------------------------------------------

    def count(self, report: BatchReport) -> None:
        """Counts what the engine did: once a batch, so straight into the array."""
        for session_count, load_s in report.loads:
            self._loaded.inc(session_count)
            self._load_s.observe(load_s)
        for waits_s, each in report.waits:
            self._queue_s.observe_many(waits_s, each)
        for chunk_count, run_s in report.runs:
            self._batch_size.observe(chunk_count)
            self._run_s.observe(run_s)
        for size_bytes, commit_s in report.commits:
            self._committed_bytes.numbers[0] += size_bytes
            self._commit_s.observe(commit_s)
        self._steps.numbers[0] += report.step_count
        for answers_s, each in report.answers:
            self._chunks.numbers[0] += each * len(answers_s)
            self._chunk_s.observe_many(answers_s, each)
        for ack_level, chunk_count in report.acknowledged:
            self._acknowledged.numbers[ack_level] += chunk_count
        for reason in report.refused:
            self.refused(reason)
        self._replays.numbers[0] += report.replay_count
        self._conflicts.numbers[0] += report.conflict_count
        self._reruns.numbers[0] += report.rerun_count
        self._halts.numbers[0] += report.halt_count
        if report.quarantine_count:
            self.session_event(SessionEvent.QUARANTINED, report.quarantine_count)

    def refused(self, reason: str) -> None:
        """A chunk was answered with an error, and its caller still waits for it; or a call was refused."""
        self._errors.inc(_REASON_INDEX[reason])
        event = _EVENT_OF_REASON.get(reason)
        if event is not None:
            self._session_events.inc(event)

    def session_event(self, event: SessionEvent, count: int = 1) -> None:
        """Something happened to sessions."""
        self._session_events.inc(event, count)

    # -- the array ----------------------------------------------------------------------------

    def _take(self, count: int) -> "memoryview[float]":
        start, self._taken = self._taken, self._taken + count
        assert self._taken <= len(self._numbers), "bug: SIZE_BYTES is too small"
        return self._numbers[start : self._taken]

    def _counter(self, name: str, text: str, prefix: str = "holdfast_") -> CounterFamily:
        counter = CounterFamily(prefix + name, text, self._take(1))
        self.registry.register(counter)
        return counter

    def _labelled(self, name: str, text: str, label: str, values: Sequence[str]) -> LabelledFamily:
        family = LabelledFamily(f"holdfast_{name}", text, label, values, self._take(len(values)))
        self.registry.register(family)
        return family

    def _gauge(
        self,
        name: str,
        text: str,
        joins: Callable[[Sequence[float]], float] = sum,
        prefix: str = "holdfast_",
    ) -> GaugeFamily:
        gauge = GaugeFamily(prefix + name, text, self._take(1), joins)
        self.registry.register(gauge)
        self._gauges.append(gauge)
        return gauge

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...] = SECONDS) -> HistogramFamily:
        histogram = HistogramFamily(f"holdfast_{name}", text, bounds, self._take(len(bounds) + 2))
        self.registry.register(histogram)
        return histogram


def scrape_together(base: Metrics, workers: Sequence[Metrics], floor: Metrics) -> bytes:
    """Returns the text for several processes.

    Args:
        base: What is counted beside the workers, and what workers that are gone had counted.
        workers: Those that run. The store is up if it is for each of them that serves.
        floor: What was scraped last, below which no count falls; it becomes what is scraped now.
    """
    total = Metrics()
    for part in (base, *workers):
        total.absorb(part)
    total.rise_to(floor)
    total.join_gauges([worker for worker in workers if worker.workers.value])
    total.add_process(base)
    return total.scrape()


@functools.cache
def _version() -> str:
    """Returns the version of the package, read once: a scrape must not need a descriptor."""
    return version("holdfast")

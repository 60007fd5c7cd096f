"""Who may import what: imports point downwards, and each library has one home."""

import ast
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [
    path
    for folder in ("holdfast", "service", "model_export")
    for path in (ROOT / folder).rglob("*.py")
    if "_pb2" not in path.name
]
ROOMS = (
    ("service.command",),
    ("holdfast.cli",),
    ("holdfast.demo", "holdfast.bench", "holdfast.pipe"),
    ("holdfast.verify",),
    ("service.process", "holdfast.client", "model_export"),
    ("service.app",),
    ("service.rpc",),
    ("service.telemetry",),
    ("service.engine", "service.settings"),
    ("service.model", "service.store"),
    ("service.common",),
    ("holdfast.errors",),
    ("holdfast.pending",),
    ("holdfast.history_digest",),
    ("holdfast.v1", "holdfast.oip"),
)
"""Every room, from top to bottom. A room imports what is below it, not what is beside it."""
ONLY = {
    "holdfast.client": ("holdfast.errors", "holdfast.pending", "holdfast.history_digest", "holdfast.v1"),
    "model_export": ("service.model",),
}
"""What else of ours a room may import, where that is not everything below it."""
HOMES = {
    "grpc": (
        *("holdfast.client", "holdfast.bench", "holdfast.cli.bench"),
        *("service.rpc", "service.app"),
    ),
    "grpc_health": ("service.rpc",),
    "grpc_reflection": ("service.rpc",),
    "onnxruntime": ("service.model", "model_export", "holdfast.verify"),
    "redis": (
        "service.store",
        "holdfast.pipe.redis_link",
        "holdfast.pipe.stream_source",
        "holdfast.pipe.stream_sink",
    ),
    "hiredis": ("service.store",),
    "prometheus_client": (
        "service.telemetry.metrics",
        "service.telemetry.families",
        "service.telemetry.rpc_metrics",
    ),
    "opentelemetry": ("service.telemetry.tracing",),
    "torch": ("model_export",),
    "onnx": ("model_export",),
    "uvicorn": ("service.process.http_server", "service.process.http_connection"),
    "h11": ("service.process.http_connection",),
    "pydantic": ("service.settings.schema", "service.settings.sources", "service.settings.reference"),
}
PURE = {
    "service.engine.rules",
    "service.engine.imported",
    "service.engine.admission",
    "service.engine.ranking",
    "service.engine.run",
    "service.engine.stages",
    "service.engine.watch_events",
    "service.rpc.follower",
    "service.store.record",
    "service.store.record_rows",
    "service.store.blob",
    "service.store.head",
    "service.store.slots",
    "service.store.safety",
    "service.store.error_table",
    "service.store.acl",
    "service.store.replies",
    "service.common.listen_address",
    "service.common.names",
    "service.common.redaction",
    "service.rpc.credentials",
    "service.rpc.page_token",
    "service.rpc.oip.descriptions",
    "service.rpc.oip.mapping",
    "service.rpc.oip.replies",
    "service.rpc.oip.sequence",
    "service.rpc.oip.tensors",
    "service.model.apart",
    "service.model.axis_roles",
    "service.model.call_filter",
    "service.model.config_pbtxt",
    "service.model.contract",
    "service.model.contract_text",
    "service.model.guesses",
    "service.model.looks",
    "service.model.name_stems",
    "service.model.onnx_wire",
    "service.model.operators",
    "service.model.pairing",
    "service.model.patterns",
    "service.model.sequences",
    "service.model.text_proto",
    "service.model.trial",
    "service.model.trial_inputs",
    "service.model.trial_runs",
    "service.model.trial_words",
    "service.model.wire_format",
    "holdfast.verify.chain",
    "holdfast.verify.digests",
    "holdfast.verify.findings",
    "holdfast.verify.gaps",
    "holdfast.verify.life",
    "holdfast.verify.life_order",
    "holdfast.verify.network",
    "holdfast.verify.origins",
    "holdfast.verify.outputs",
    "holdfast.verify.session_history",
    "holdfast.pipe.events",
    "holdfast.pipe.failures",
    "holdfast.pipe.places",
    "holdfast.pipe.records",
    "holdfast.errors.base",
    "holdfast.errors.client",
    "holdfast.errors.service",
    "holdfast.errors.session",
    "holdfast.client.arrays",
    "holdfast.client.options",
    "holdfast.client.rows",
    "holdfast.client.tokens",
    "holdfast.history_digest",
    "holdfast.client.replay_buffer",
    "holdfast.client.unanswered",
    "holdfast.client.ack_levels",
}
IMPURE = {"asyncio", "time", "socket", "grpc", "os", "threading", "redis"}
CORE = "service.engine.core"
BESIDE_CORE = {"numpy", "xxhash"}
"""Third parties that the core may compute with."""


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text())


@functools.cache
def imports(path):
    return imports_of(ast.walk(tree_of(path)))


def imports_of(nodes):
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += (f"{node.module}.{name.name}" for name in node.names)
    return found


def within(module, package):
    return module == package or module.startswith(package + ".")


def room_of(module):
    """Returns a room and its row, or None if it is not ours; what `holdfast` gives is the client's."""
    for number, row in enumerate(ROOMS):
        for room in row:
            if within(module, room):
                return room, number
    return room_of("holdfast.client") if within(module, "holdfast") else None


IN_ROOMS = [module for module in map(module_name, FILES) if module not in ("holdfast", "service")]


def test_every_file_lies_in_a_room_and_no_room_is_empty():
    rooms = [room for row in ROOMS for room in row]
    homeless = [module for module in IN_ROOMS if not any(within(module, room) for room in rooms)]
    assert not homeless, "files that lie in no room of ROOMS"
    empty = [room for room in rooms if not any(within(module, room) for module in IN_ROOMS)]
    assert not empty, "rooms of ROOMS without a file"


def wrong_import(module, imported):
    """Returns why a module may not import another, or None."""
    (mine, my_row), theirs = room_of(module), room_of(imported)
    if theirs is None or theirs[0] == mine:
        return None
    if theirs[1] <= my_row:
        return f"{module} imports {imported}, which is not below {mine}"
    if mine in ONLY and theirs[0] not in ONLY[mine]:
        return f"{module} imports {imported}; {mine} imports only {', '.join(ONLY[mine])}"
    if within(module, "service") and module != "service.command" and theirs[0] == "holdfast.client":
        return f"{module} imports {imported}; a server needs no client"
    return None


def test_imports_go_down_from_room_to_room():
    wrong = [
        why
        for path in FILES
        if module_name(path) in IN_ROOMS
        for imported in imports(path)
        if (why := wrong_import(module_name(path), imported))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "imported", "is_right"),
    [
        ("service.rpc.codec", "service.engine.rules.Rules", True),
        ("service.engine.core", "service.rpc.codec", False),
        ("service.model.files", "service.store.keys", False),
        ("service.common.names", "service.settings.schema.Settings", False),
        ("service.process.host", "holdfast.AsyncClient", False),
        ("holdfast.client.aio", "service.common.start_errors", False),
        ("holdfast.client.aio", "holdfast.errors.HoldfastError", True),
        ("holdfast.errors", "holdfast.client.reply", False),
        ("holdfast.cli.serve", "service.process.host.serve", True),
        ("model_export.written", "service.model.files", True),
        ("model_export.written", "service.engine.rules", False),
    ],
)
def test_an_import_that_goes_up_is_noticed(module, imported, is_right):
    assert (wrong_import(module, imported) is None) == is_right


def test_libraries_stay_home_and_what_is_pure_imports_nothing_impure():
    wrong = []
    for path in FILES:
        module = module_name(path)
        for imported in imports(path):
            library = imported.partition(".")[0]
            homes = HOMES.get(library, (module,))
            if not any(within(module, home) for home in homes):
                wrong.append(f"{module} imports {imported}")
            if module in PURE and library in IMPURE:
                wrong.append(f"{module} is pure, yet imports {imported}")
    assert not wrong, "\n".join(wrong)
    assert set(map(module_name, FILES)) >= PURE, "modules of PURE that are not there"


def reached(module):
    """Returns the modules of ours that a module imports, by whatever way, and itself."""
    paths = {module_name(path): path for path in FILES}
    found, left = set(), [module]
    while left:
        name = left.pop()
        if name not in paths:  # a name in a module
            name = name.rpartition(".")[0]
        if name in paths and name not in found:
            found.add(name)
            left += imports(paths[name])
    return {name: paths[name] for name in found}


def test_the_core_and_all_that_it_imports_are_pure():
    """No clock, no wait, no store, no run: times and outcomes are given to it."""
    modules = reached(CORE)
    assert len(modules) > 15
    for module, path in modules.items():
        for imported in imports(path):
            name = imported.partition(".")[0]
            assert name not in IMPURE, f"{module} imports {imported}"
            is_known = name in sys.stdlib_module_names | BESIDE_CORE | {"service", "holdfast"}
            assert is_known, f"{module} imports {imported}"
        if within(module, "service.engine"):
            nodes = list(ast.walk(tree_of(path)))
            assert not any(isinstance(node, ast.Await | ast.AsyncFunctionDef) for node in nodes), module


def test_errors_need_the_standard_library_alone():
    """The pure core raises them, so they know nothing of gRPC or of arrays."""
    for path in (ROOT / "holdfast" / "errors").glob("*.py"):
        body = tree_of(path).body  # not what is imported for types alone
        for imported in imports_of(node for node in body if isinstance(node, ast.Import | ast.ImportFrom)):
            is_standard = imported.partition(".")[0] in sys.stdlib_module_names
            assert is_standard or within(imported, "holdfast.errors"), (
                f"{module_name(path)} imports {imported}"
            )


WALL_CLOCKS = {
    "time.time", "time.time_ns", "time.localtime", "time.gmtime", "datetime.now", "datetime.utcnow",
    "datetime.today", "date.today",
}  # fmt: skip
TELLS_TIME = {
    "service.engine.watched": "watchers are told when a chunk was committed",
    "service.rpc.oip.statistics": "a report says when the last request was answered",
    "service.telemetry.tracing": "a span says when its call began",
}
"""Where a clock that can jump is read nevertheless, and why: nothing is decided by it."""
LAST_WORDS = {name.rpartition(".")[2] for name in WALL_CLOCKS}


def test_nobody_reads_a_clock_that_can_jump():
    """Waits and ages are told by the monotonic clock, expiry by the store's."""
    wrong = [
        f"{module_name(path)}, line {line}: {name}"
        for path in FILES
        if "model_export" not in path.parts and module_name(path) not in TELLS_TIME
        for line, name in clocks_of(path)
    ]
    assert not wrong, "\n".join(wrong)


def clocks_of(path):
    """Yields line and name of the wall clocks that a file reads."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and node.attr in LAST_WORDS:
            name = ".".join(ast.unparse(node).split(".")[-2:])
            if name in WALL_CLOCKS:
                yield node.lineno, name
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            for name in {f"time.{alias.name}" for alias in node.names} & WALL_CLOCKS:
                yield node.lineno, name


def test_proto_has_no_package_file():
    assert not list((ROOT / "proto").rglob("__init__.py"))


def test_every_public_name_has_a_docstring():
    without = []
    for path in FILES:
        tree = tree_of(path)
        if not ast.get_docstring(tree):
            without.append(f"{module_name(path)}: the file does not say what it owns")
        for node in tree.body:
            is_named = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if is_named and not ast.get_docstring(node):
                without.append(f"{module_name(path)}.{node.name}")
    assert not without, "\n".join(without)


STARTS = {"create_task", "ensure_future", "Thread", "ThreadPoolExecutor", "run_coroutine_threadsafe"}
ENDS_BY_ITSELF = {
    (
        "service.process.http_server",
        "HttpServer.__init__",
    ): "uvicorn's; what fails in its loop is noted by `_note`",
    ("service.process.worker", "main"): "its end, however it comes, ends the process",
    ("service.engine.runner", "Watchdog.__init__"): "its turns have a Trouble",
    ("service.engine.driver", "Driver.start"): "its turns have a Trouble",
    ("service.engine.driver", "Driver._spawn"): "one effect, whose failure is answered by `_do`",
    ("service.engine.runner", "Runner.__init__"): "runs of one batch, whose failure is its outcome",
    ("service.model.check", "each_file"): "one check per file; the caller gets the error",
    ("service.model.reloading", "ModelReloading._look"): "one look, with a Trouble",
    ("service.model.reloading", "_in_thread"): "one call; the caller gets the error",
    ("service.rpc.streams", "ReplyStream._exchange"): "reads one stream, which ends with it",
    (
        "service.rpc.oip.ends",
        "Ends.begin",
    ): "deletes one session, which expires otherwise; a failure is logged",
    ("service.rpc.oip.stream", "InferStream._submit"): "applies one request; the caller gets the error",
    ("service.store.confirmation", "_Lane.wait"): "one wait; those who wait get the error",
    ("service.store.cluster", "Cluster._refresh_soon"): "reads the map until it is right, with a Trouble",
    ("service.store.cluster", "Cluster._retire"): "closes one node",
    ("service.store.connection", "StoreConnection.begin"): "connects until it has, with a Trouble",
    ("service.store.sentinel", "Sentinels._hear"): "one question; the caller gets the error",
    (
        "service.process.supervisor",
        "Supervisor.start",
    ): "starting one worker, whose caller gets the error; replacing has a Trouble",
    ("service.store.keeper", "kept"): "its turns have a Trouble",
    (
        "service.telemetry.log_writer",
        "WriterHandler.__init__",
    ): "a line that cannot be written is counted as lost",
    ("service.process.standard_streams", "say"): "writes one line",
    ("service.process.host", "serve"): "the service itself; its end is that of the process",
    ("service.process.host", "_open"): "one start; the caller gets the error",
    ("service.rpc.ending", "Endings.begin"): "one call",
    ("service.telemetry.tracing", "Tracing.close"): "the end of a library's thread",
    ("service.rpc.watch_view", "Runs.__init__"): "runs for one watcher, whose failure is its outcome",
    ("service.process.http_pages", "Paced.__call__"): "makes one page; those who wait get the error",
}
"""Where a task or thread is started that is not kept going by `keep_going`, and why that is right."""


def starts_of(tree):
    """Yields where tasks and threads are started without `keep_going`, as Class.function."""

    def visit(node, place):
        for child in ast.iter_child_nodes(node):
            inner = place
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and len(place) < 2:
                inner = (*place, child.name)
            if isinstance(child, ast.Call):
                called = ast.unparse(child.func).rpartition(".")[2]
                if called in STARTS and "keep_going(" not in ast.unparse(child):
                    yield ".".join(place)
            yield from visit(child, inner)

    yield from visit(tree, ())


def test_no_task_or_thread_of_a_server_ends_by_an_exception():
    found = {
        (module_name(path), place)
        for path in FILES
        if path.is_relative_to(ROOT / "service")
        for place in starts_of(tree_of(path))
    }
    assert found == ENDS_BY_ITSELF.keys()

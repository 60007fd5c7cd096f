"""Links lead somewhere; commands and settings in the pages exist; what can be run is run as it stands."""

import functools
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import yaml

from holdfast.demo.processes import ServerProcess
from holdfast.v1 import holdfast_pb2 as pb
from service.rpc.call import _OURS
from service.settings.schema import Settings
from tests.docs.grpcurl import grpcurl
from tests.docs.pages import PAGES, ROOT, anchors, blocks, kinds, links
from tests.support.command_line import call

RUN = {
    "README.md": ["position 19", "64 copies at position 49"],
    "docs/guides/watching.md": ["True", "b'import num' 10 False 3", "True"],
    "docs/guides/python.md": [
        "0 False 1", "10 False memory", "(2, 256)", "float32", "True ()", "True", "True", "True",
        "[1, 2, 3, 4, 5, 6, 7, 8, 9]",
        "True", "100 (100, 1, 1) {}", "True 100", "200", "MODEL_NOT_FOUND False () ()", "done",
    ],
    "docs/guides/copies.md": [
        "True True", "25 31", "(64,) {} True", "True", "True True", "True",
        "[('book-copy', 31), ('book-moved', 37)]", "[]", "[31, 0] SESSION_NOT_FOUND",
    ],
    "docs/guides/checkpoints.md": ["48 b'48'", "63 68", "before the guess 63"],
    "docs/guides/triton.md": ["2 False", "2 True"],
    "docs/guides/generation.md": ["60 69", "True", "False", "True", "True", "True", "True"],
}  # fmt: skip
"""Pages whose examples in Python are run, one after the other, and what they print; others are read."""

FOREIGN = {
    "apt-get", "cd", "cp", "curl", "docker", "git", "helm", "kubectl", "mv", "openssl", "pip", "prometheus",
    "promtool", "python", "python3", "redis-cli", "redis-server", "sed", "seq", "sudo", "timeout", "unzip",
    "wc",
}  # fmt: skip
"""Programs of others that the pages call."""


OTHER_FLAGS = {"--build-arg", "--preload"}
"""Of programs of others."""

OTHER_VARIABLES = {
    "HOLDFAST_", "HOLDFAST_FAILPOINTS", "HOLDFAST_FAULTS", "HOLDFAST_TEST_", "HOLDFAST_TEST_HERD",
    "HOLDFAST_TEST_REQUIRE_PROMTOOL", "HOLDFAST_TEST_REQUIRE_REDIS",
    "HOLDFAST_GRPC_PORT", "HOLDFAST_PORT", "HOLDFAST_SERVICE_HOST", "HOLDFAST_WORKER",
}  # fmt: skip
"""Of tests, of Kubernetes, and one that is misspelt on purpose."""


def command_lines():
    """Yields page and words of every command in the pages."""
    for block in blocks("sh"):
        text = block.text.replace("\\\n", " ")
        for line in text.splitlines():
            for part in re.split(r" && | \| ", line):
                words = shlex.split(part, comments=True)
                if words:
                    yield block.page, words


def test_every_block_says_what_it_is():
    assert kinds() <= {"javascript", "python", "sh", "toml", "yaml", "text", "json", "promql"}


def test_links_lead_somewhere():
    dead = []
    for page in PAGES:
        for target in links(page):
            path, _, anchor = target.partition("#")
            found = (page.parent / path).resolve() if path else page
            if not found.exists() or (anchor and anchor not in anchors(found)):
                dead.append(f"{page.relative_to(ROOT)}: {target}")
    assert not dead, "\n".join(dead)


def test_examples_in_python_are_python():
    wrong = []
    for block in blocks("python"):
        try:
            compile(block.text, block.page, "exec")
        except SyntaxError as error:
            wrong.append(f"{block.page}: {error}\n{block.text}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", RUN)
def test_examples_run_as_they_stand(page, server):
    code = "\n".join(block.text for block in blocks("python") if block.page == page)
    code = code.replace("localhost:50051", server.address)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".venv" / "tritonclient")}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    said = result.stdout.splitlines()
    assert [line for line in said if line in RUN[page]] == RUN[page], result.stdout


def test_the_feature_table_names_every_rpc():
    text = (ROOT / "docs" / "features.md").read_text()
    for method in pb.DESCRIPTOR.services_by_name["StreamingInferenceService"].methods:
        assert method.name in text, method.name


def test_the_page_of_logs_names_the_reasons_that_are_logged():
    _, _, text = (
        (ROOT / "docs" / "operate" / "logs.md").read_text().partition("**Which calls are logged.**")
    )
    named = re.findall(r"`([A-Z_]+)`", text.partition("That includes")[0])
    assert sorted(named) == sorted(kind.reason for kind in _OURS)


def test_commands_and_their_flags_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page, words in command_lines():
        program, *arguments = [word for word in words if not re.fullmatch(r"[A-Z_]+=.*", word)]
        where = f"{page}: {shlex.join(words)}"
        program = program.removeprefix(".venv/bin/")
        if program == "make":
            for target in arguments:
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), where
        elif program == "holdfast":
            said = help_of(arguments)
            for flag in re.findall(r"--[a-z-]+", " ".join(arguments)):
                assert flag in said, where
        elif program.startswith(("deploy/", "./")):
            assert (ROOT / program).exists(), where
        elif program == "python":
            assert arguments[0] == "-m", where
            assert importlib.util.find_spec(arguments[1]), where
        elif program != "grpcurl":
            assert program in FOREIGN, where


def help_of(arguments):
    """Returns the help of the subcommand that is called."""
    command = []
    for word in arguments:
        if word.startswith("-") or not re.fullmatch(r"[a-z][a-z-]+", word) or len(command) == 2:
            break
        command.append(word)
    for words in (command, command[:1]):
        said = called_for_help(*words)
        if said.code == 0:
            return said.out
    raise AssertionError(f"holdfast has no {' '.join(command)}: {said.err}")


@functools.cache
def called_for_help(*words):
    return call(*words, "--help")


def test_settings_that_the_pages_name_exist():
    fields = set(Settings.model_fields)
    flags = {f"--{name.replace('_', '-')}" for name in fields} | {
        f"--no-{name.replace('_', '-')}" for name in fields
    }
    others = {name for page in PAGES for name in re.findall(r"\bHOLDFAST_[A-Z_]+\b", page.read_text())}
    unknown = {name for name in others if name.removeprefix("HOLDFAST_").lower() not in fields}
    assert unknown <= OTHER_VARIABLES
    serve = re.compile(r"`(--[a-z-]+)[ `]")
    known = flags | OTHER_FLAGS | set(re.findall(r"--[a-z-]+", all_help()))
    for page in PAGES:
        if page.parent.name in ("docs", "guides", "operate") or page.name in ("README.md", "SECURITY.md"):
            for flag in serve.findall(page.read_text()):
                assert flag in known, f"{page.name}: {flag}"


def all_help():
    commands = (
        ["verify"],
        ["bench"],
        ["pipe"],
        ["demo"],
        ["token", "create"],
        ["store", "acl"],
        ["session", "release"],
        ["session", "delete"],
        ["model", "export"],
    )
    return "".join(help_of(command) for command in commands)


def test_examples_of_files_can_be_read():
    for block in blocks("toml"):
        tomllib.loads(block.text)
    for block in blocks("yaml"):
        list(yaml.safe_load_all(block.text))
    for block in blocks("json"):
        json.loads(block.text)


def test_commands_of_grpcurl_do_what_the_page_says(server):
    said = [
        grpcurl([word.replace("localhost:50051", server.address) for word in words])
        for page, words in command_lines()
        if words[0] == "grpcurl"
    ]
    assert len(said) == 10
    listed, described, models, opened, step, session, streamed, deleted, health, service = said
    assert "holdfast.v1.StreamingInferenceService" in listed
    assert "session_id" in described
    assert {"python-source"} <= {model["name"] for model in models[0]["models"]}
    assert opened[0]["session"]["model"] == {"name": "python-source", "version": "1"}
    assert (step[0]["result"]["position"], len(step[0]["result"]["outputs"]["topIds"])) == ("10", 30)
    assert session[0]["session"]["position"] == "10"
    assert [reply["result"]["position"] for reply in streamed] == ["11", "12"]
    assert deleted[0]["position"] == "12"
    assert health[0] == service[0] == {"status": "SERVING"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("docs") / "data") as server:
        yield server

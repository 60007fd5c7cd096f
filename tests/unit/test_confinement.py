"""What the check of a model gives up, told by a process that does so and then tries."""

import struct
import subprocess
import sys

import pytest

from service.model import check, confinement
from service.model.call_filter import number_of_seccomp, program_for
from service.model.check import check_folder, check_model
from service.model.confinement import CALL_FILTER, LANDLOCK, confine
from tests.support.oracle import MODELS

pytestmark = pytest.mark.process


@pytest.fixture
def told(caplog):
    """Returns what the log says of confinement, which it says once in a process."""
    caplog.set_level("INFO")
    check._tell_once.cache_clear()
    return lambda: [line for line in caplog.messages if "are checked with" in line]


def test_a_confined_process_reaches_no_file_no_network_and_no_other_process():
    command = [sys.executable, "-m", "tests.support.processes.confined"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr
    held, *reached = result.stdout.split("; ")
    if CALL_FILTER not in held:
        pytest.skip("this system lets no process filter its calls")
    assert reached == []


def test_the_shipped_models_pass_under_it_and_the_log_says_once_what_holds(told, monkeypatch):
    monkeypatch.setattr(check.shipped, "FINGERPRINTS", frozenset())  # else they need none
    assert len(check_folder(MODELS, 1 << 30)) == len(list(MODELS.glob("*/*/model.onnx")))
    (line,) = told()
    assert "limits on resources" in line


def test_the_log_says_what_a_system_does_not_allow(told):
    check._tell_confinement((LANDLOCK,))
    check._tell_confinement((LANDLOCK,))
    without = "no capabilities, no network, system call filter"
    assert told() == [f"model files are checked with limits on resources, landlock; not with {without}"]


def test_what_a_check_claims_beside_that_is_not_logged(told, monkeypatch):
    monkeypatch.setattr(check, "PROCESS", "tests.support.processes.passes")
    check_model(MODELS, b"")
    assert [line.partition("; ")[0] for line in told()] == [
        "model files are checked with limits on resources"
    ]


def test_a_system_that_allows_none_of_it_keeps_the_limits(monkeypatch):
    class Refusing:
        def __getattr__(self, _):
            return lambda *_: -1

    calls = []
    monkeypatch.setattr(confinement, "_libc", Refusing())
    assert confine(lambda: calls.append("limits")) == ()
    assert calls == ["limits"]


# -- the filter ----------------------------------------------------------------------------------

CONVENTIONS = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
OPENAT = {"x86_64": 257, "aarch64": 56}
MMAP = {"x86_64": 9, "aarch64": 222}
TGKILL = {"x86_64": 234, "aarch64": 131}
READ = {"x86_64": 0, "aarch64": 63}
ALLOW, REFUSE, END = 0x7FFF0000, 0x00050001, 0x80000000


def outcome(program, convention, number, *arguments):
    """Runs a program as a kernel does, on a call."""
    looked_at = struct.pack("<IIQ6Q", number, convention, 0, *arguments, *[0] * (6 - len(arguments)))
    instructions = list(struct.iter_unpack("<HBBI", program))
    place = value = 0
    while True:
        code, if_true, if_false, operand = instructions[place]
        place += 1
        if code == 0x20:
            (value,) = struct.unpack_from("<I", looked_at, operand)
        elif code == 0x06:
            return operand
        else:
            holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
            place += if_true if holds else if_false


@pytest.mark.parametrize("machine", CONVENTIONS)
def test_the_filter_lets_through_what_is_listed_for_what_it_is_there(machine):
    program, convention = program_for(machine, process=7), CONVENTIONS[machine]
    assert len(program) // 8 < 4096  # the most that a kernel takes
    for number, arguments, expected in (
        (READ[machine], [0], ALLOW),
        (READ[machine], [3], REFUSE),
        (MMAP[machine], [0, 4096, 3], ALLOW),
        (MMAP[machine], [0, 4096, 7], REFUSE),
        (TGKILL[machine], [7, 8, 6], ALLOW),
        (TGKILL[machine], [1, 1, 9], REFUSE),
        (OPENAT[machine], [], REFUSE),
        (100_000, [], REFUSE),
    ):
        assert outcome(program, convention, number, *arguments) == expected, (number, arguments)


def test_calls_by_another_convention_end_the_process():
    program = program_for("x86_64", process=7)
    assert outcome(program, 0x40000003, 3) == END  # 32 bit
    assert outcome(program, CONVENTIONS["x86_64"], 0x40000000) == END  # x32
    assert outcome(program_for("aarch64", process=7), 0x40000028, 3) == END


def test_a_processor_that_is_not_known_has_no_filter():
    assert number_of_seccomp("riscv64") is None

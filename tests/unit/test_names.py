"""Which characters names may have, whatever the Unicode tables of the interpreter say."""

import pytest

from holdfast.errors import InvalidRequest
from service.common.names import control_character
from service.model.files import ModelFileError, find_files, list_files
from service.rpc.codec import key_of

CONTROLS = [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029]


@pytest.mark.parametrize("code", [0, 9, 10, 0x1F, 0x7F, 0x80, 0x85, 0x9F, 0x2028, 0x2029])
def test_a_control_character_is_named_with_its_place(code):
    with pytest.raises(
        InvalidRequest, match=f"chunk.session_id has U\\+{code:04X} at index 2, expected"
    ) as caught:
        key_of("tenant", f"ab{chr(code)}c", "chunk.session_id")
    assert caught.value.field == "chunk.session_id"


@pytest.mark.parametrize(
    "text",
    [
        " ", "~", "\xa0", "\xad",
        "\u2027", "\u202a", "\u200c", "\u200d", "\u202e", "\ufeff", "\ue000", "\uffff",
        "e\u0301", "\u0301", "👩‍🚀", "\U000e0001", "\U0010ffff", "\u0378", "\u3000",
    ],
)  # fmt: skip
def test_everything_else_is_fine(text):
    assert key_of("tenant", text)


def test_the_controls_are_those_of_the_contract_and_no_others():
    refused = [code for code in range(0x110000) if control_character(chr(code))]
    assert refused == sorted([*CONTROLS, *range(0xD800, 0xE000)])


def test_a_folder_whose_name_is_no_text_is_no_model(tmp_path):
    for name in ("bad\nname", b"\xff".decode(errors="surrogateescape"), "fine"):
        path = tmp_path / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        path.touch()
    files, refused = list_files(tmp_path)
    assert [file.name for file in files] == ["fine"]
    said = sorted(str(error) for error in refused)
    assert "name has U+000A at index 3" in said[1]
    assert "name has U+DCFF at index 0" in said[0]
    assert all(text.encode() and text.isprintable() for text in said)
    assert "/bad\\nname/1/model.onnx: " in said[1]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".hidden", "begins with a dot"),
        ("n" * 129, "has 129 characters, expected at most 128"),
        ("ab\u202ecd", "has U\\+202E at index 2"),
        ("clicks\u200b", "has U\\+200B at index 6"),
        ("\ufeffclicks", "has U\\+FEFF at index 0"),
    ],
)
def test_a_name_that_is_too_long_or_looks_like_another_is_no_model(tmp_path, name, reason):
    path = tmp_path / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(ModelFileError, match=f"its model's name {reason}"):
        find_files(tmp_path)


@pytest.mark.parametrize("name", ["n" * 128, "Größe 2", "クリック", "a.b", "e\u0301"])
def test_any_other_name_is_fine(tmp_path, name):
    path = tmp_path / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.touch()
    assert [file.name for file in find_files(tmp_path)] == [name]

"""Files that people edit anywhere, and what is read of them."""

import codecs

import pytest

from service.common.text_files import decoded, without_mark
from service.model.files import ModelFileError, read_file
from service.store.address import password_in

MARKED = {
    "plain": b"a = 1\r\n",
    "marked": codecs.BOM_UTF8 + b"a = 1\r\n",
    "PowerShell": codecs.BOM_UTF16_LE + "a = 1\r\n".encode("utf-16-le"),
    "UTF-16 of the other order": codecs.BOM_UTF16_BE + "a = 1\r\n".encode("utf-16-be"),
}


@pytest.mark.parametrize("content", MARKED.values(), ids=MARKED)
def test_the_mark_at_the_head_of_a_file_is_no_part_of_it(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert decoded(content) == "a = 1\r\n"
    assert without_mark(content) == b"a = 1\r\n"
    assert password_in(path) == "a = 1"


def test_a_password_that_is_no_text_is_told_as_a_file_that_cannot_be_read(tmp_path):
    path = tmp_path / "password"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OSError, match="it is not UTF-8 text"):
        password_in(path)


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1840156\n")
    with pytest.raises(
        ModelFileError, match=r"a pointer of Git LFS, not the model; fetch that by git lfs pull"
    ):
        read_file(path)

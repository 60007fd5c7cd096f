"""A file that is something else than ONNX is refused with what it looks like and what to do."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from service.model.onnx_wire import UnsafeGraph, check_file
from service.model.other_formats import other_format
from tests.support.oracle import MODELS


def zipped(**files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return file.getvalue()


def packed():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.onnx"), io.BytesIO())
    return file.getvalue()


def array():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def safetensors():
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
FORMATS = {
    "Git LFS": (POINTER, "a Git LFS pointer, not the model; run `git lfs pull`"),
    "HTML": (b"\n<!DOCTYPE html>\n<html><head>", "an HTML page, probably a download that failed"),
    "HTML without a type": (b"<HTML><body>404", "an HTML page, probably a download that failed"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "an XML page, probably a download"),
    "text": (b"Entry not found", "text that begins 'Entry not found'; probably a download that failed"),
    "JSON": (b'{"error": "gated"}', 'text that begins \'{"error": "gated"}\''),
    "text in another alphabet": (("é" * 1000).encode(), "text that begins 'ééé"),
    "checkpoint": (
        zipped(**{"archive/data.pkl": "x"}),
        "a checkpoint of PyTorch, which is a zip archive; export the network",
    ),
    "old checkpoint": (pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2), "a pickle, as PyTorch writes"),
    "Keras": (zipped(**{"metadata.json": "{}", "config.json": "{}"}), "a model of Keras, which is a zip"),
    "Keras in HDF5": (b"\x89HDF\r\n\x1a\n\0\0\0\0", "an HDF5 file, as Keras writes them"),
    "zip": (zipped(**{"model.onnx": "x"}), "a zip archive; unpack it"),
    "gzip": (gzip.compress(b"x"), "a gzip archive; unpack it"),
    "bzip2": (bz2.compress(b"x"), "a bzip2 archive; unpack it"),
    "xz": (lzma.compress(b"x"), "an xz archive; unpack it"),
    "tar": (packed(), "a tar archive; unpack it"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3\x14\0", "a TensorFlow Lite model; export the network to ONNX"),
    "ort": (b"\x1c\0\0\0ORTM\x14\0", "a graph in onnxruntime's own format"),
    "safetensors": (safetensors(), "a safetensors file, which has weights and no network"),
    "GGUF": (b"GGUF\x03\0\0\0", "a GGUF file"),
    "array": (array(), "a NumPy array"),
}


@pytest.mark.parametrize(("data", "words"), FORMATS.values(), ids=FORMATS.keys())
def test_a_file_of_another_format_is_refused_by_its_name(data, words):
    with pytest.raises(UnsafeGraph) as refused:
        check_file(data)
    assert str(refused.value).startswith(f"not a loadable ONNX graph: it is {words}")
    assert str(refused.value).isprintable()


def test_an_onnx_file_is_none_of_them_however_much_of_it_is_there():
    for path in MODELS.glob("*/*/model.onnx"):
        data = path.read_bytes()
        assert [other_format(data[:size]) for size in (1, 2, 4, 8, 100, len(data))] == [None] * 6


def test_bytes_that_look_like_nothing_are_not_given_a_name():
    assert other_format(bytes(range(256))) is None
    assert other_format(b"") is None

"""Arrays of NumPy's format are read as NumPy reads them, and what is none is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest

from speechtrain.data.arrays import read_array


def stored(value: object, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(value), **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "value",
    [np.arange(6.0, dtype="f4").reshape(2, 3), np.asfortranarray(np.ones((2, 3))), np.int64(7), np.zeros((0, 4), ">f2"), [True, False]],
)
def test_arrays_are_those_that_were_stored(value: object) -> None:
    found = read_array(io.BytesIO(stored(value)))
    assert found.dtype == np.asarray(value).dtype
    np.testing.assert_array_equal(found, np.asarray(value))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"not an array", "magic string is not correct"),
        (stored([1.0])[:-1], r"its header states float64 \(1,\), and 7 bytes follow"),
        (stored(np.array([{}], dtype=object), allow_pickle=True), "it holds objects"),
        (stored([1.0]).replace(b"(1,)", b"(1*("), "its header cannot be read"),
        (stored([1.0]).replace(b"(1,)", b"(-1)"), "its header cannot be read|its header states"),
        (b"\x93NUMPY\x03\x00" + stored([1.0])[8:], r"version \(3, 0\)"),
    ],
)
def test_what_is_no_array_is_refused(content: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_array(io.BytesIO(content))

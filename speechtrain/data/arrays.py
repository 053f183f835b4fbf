"""Arrays in NumPy's own format (`.npy`), read by several threads at a time."""

from __future__ import annotations

import math
import os
import threading
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_header_lock = threading.Lock()
"""Held while NumPy reads a header with `ast`, in which Python 3.11 mixes up threads that garbage collection interrupts."""


def read_array(file: BinaryIO) -> npt.NDArray[Any]:
    """Read an array of numbers (numpy.lib.format, versions 1.0 and 2.0) to the end of a file.

    Raises:
        ValueError: it is none, or its header states another size than the file has.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"it has version {version} of NumPy's format; 1.0 and 2.0 can be read")
    try:
        with _header_lock:
            shape, is_fortran, dtype = _HEADERS[version](file)
    except Exception as error:  # of `tokenize`, for headers that no program writes
        raise ValueError(f"its header cannot be read: {error}") from error
    if dtype.hasobject:
        raise ValueError("it holds objects, not numbers")
    begin, end = file.tell(), file.seek(0, os.SEEK_END)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"its header states {dtype} {shape}, and {end - begin} bytes follow")
    file.seek(begin)
    return np.frombuffer(bytearray(file.read()), dtype=dtype).reshape(shape, order="F" if is_fortran else "C")

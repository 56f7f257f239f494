"""Saving and loading of models.

A file is one line of text, a description in JSON (see `codec`) and the concatenated bytes of the
arrays, little-endian, in row-major order:

    diffppl <format> <CRC-32 of the rest> <length of the JSON>
    {"arrays": [{"dtype": "float32", "shape": [2, 3]}, ...], "value": ...}
    ...

Loading neither runs code from a file nor imports modules that a file names. Arrays are restored
bit for bit with their dtypes, so a loaded model draws the same samples from the same key.
"""

import json
import os
import re
import uuid
import zlib
from math import prod
from pathlib import Path

import equinox as eqx
import numpy as np
from jaxtyping import PyTree

from ..checks.arguments import check_path, described
from .codec import DTYPES, Describer, LoadError, Rebuilder

_FORMAT = 1
_NAME = b"diffppl "
_HEADER = re.compile(_NAME + rb"([1-9]\d*) ([0-9a-f]{8}) (\d+)")


def save(path: str | os.PathLike, model: PyTree, *, needs_like: bool = False) -> None:
    """Write a model, or any part of one, to a file.

    The write is atomic: an interrupted save leaves an existing file unchanged.

    Args:
        path: path of the file; the customary extension is `.dppl`.
        model: a model, network, process or schedule; tuples, lists and dictionaries of them.
        needs_like: also save instances of unsupported classes (see `codec`), by their arrays
            alone. Such a file requires `load(path, like=...)`.

    Raises:
        TypeError: the model contains an unsupported class, or `path` is not a path; nothing is
            written.
        OSError: the file cannot be written.

    Example:
        >>> dp.save("roll.dppl", model)
        >>> model = dp.load("roll.dppl")
    """
    check_path("path", path)
    if not needs_like and isinstance(getattr(model, "model", None), eqx.Module):
        raise TypeError(f"model={described(model)} is not a model but has one: pass its .model.")
    describer = Describer(foreign=needs_like)
    value = describer.describe(model, "model")
    arrays = [{"dtype": array.dtype.name, "shape": array.shape} for array in describer.arrays]
    text = json.dumps({"arrays": arrays, "value": value}, allow_nan=False).encode()
    body = b"".join([text, *(array.tobytes() for array in describer.arrays)])
    # Written to a temporary file and moved into place, as `os.replace` is atomic.
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(_NAME + f"{_FORMAT} {zlib.crc32(body):08x} {len(text)}\n".encode())
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike, *, like: PyTree = None) -> PyTree:
    """Read a file written by `save`.

    Args:
        path: path of the file.
        like: a model of the same shape, which supplies the structure of instances of unsupported
            classes; its numbers are not used.

    Raises:
        FileNotFoundError: the file does not exist.
        LoadError: not a diffppl file, damaged, from a newer version, or `like` is required.

    Example:
        >>> dp.save("mine.dppl", model, needs_like=True)    # model.network is a user's class
        >>> model = dp.load("mine.dppl", like=model)
    """
    content = Path(check_path("path", path)).read_bytes()
    try:
        return _read(content, like)
    except LoadError as error:
        raise type(error)(f"{os.fspath(path)!r} cannot be loaded: {error}") from None
    except Exception as error:  # valid checksum, invalid content: a forged file
        what = f"its description is invalid ({error!r})."
        raise LoadError(f"{os.fspath(path)!r} cannot be loaded: {what}") from error


def _read(content: bytes, like: PyTree) -> PyTree:
    """Check the first line and the checksum, split the bytes into arrays, and rebuild the value."""
    if not content.startswith(_NAME):
        raise LoadError("it is not a file that diffppl.save wrote.")
    line, _, body = content.partition(b"\n")
    header = _HEADER.fullmatch(line)
    if header is None:
        raise LoadError("it is damaged: its first line is invalid.")
    version, checksum, length = int(header[1]), int(header[2], 16), int(header[3])
    if version > _FORMAT:
        raise LoadError(
            f"it has format {version}, and this version of diffppl reads up to format {_FORMAT}: "
            "upgrade diffppl."
        )
    if zlib.crc32(body) != checksum or length > len(body):
        raise LoadError("it is damaged or cut short: its checksum is wrong.")
    description = json.loads(body[:length])
    arrays, offset = [], length
    for entry in description["arrays"]:
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        stop = offset + prod(shape) * dtype.itemsize
        arrays.append(np.frombuffer(memoryview(body)[offset:stop], dtype).reshape(shape))
        offset = stop
    if offset != len(body):
        raise LoadError("it is damaged: its arrays have the wrong length.")
    return Rebuilder(arrays).rebuild(description["value"], like, "model")

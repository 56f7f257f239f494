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
import uuid
import zlib
from math import prod
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

from ..checks.arguments import check_path, described
from .codec import DTYPES, Describer, LoadError, Rebuilder

_FORMAT = 1
_NAME = b"diffppl "


def save(path: str | os.PathLike, model: Any, *, needs_like: bool = False) -> None:
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
    parts = [text, *(array.tobytes() for array in describer.arrays)]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    # Written to a temporary file and moved into place, as `os.replace` is atomic.
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(_NAME + f"{_FORMAT} {checksum:08x} {len(text)}\n".encode())
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike, *, like: Any = None) -> Any:
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
        text, data = _open(content)
        try:
            return _read(text, data, like)
        except LoadError:
            raise
        except Exception as error:  # valid checksum, invalid content: a forged file
            raise LoadError(f"its description is invalid ({error!r}).") from error
    except LoadError as error:
        raise LoadError(f"{os.fspath(path)!r} cannot be loaded: {error}") from error.__cause__


def _open(content: bytes) -> tuple[bytes, memoryview]:
    """Check the first line and the checksum; return the description and the bytes of the arrays."""
    if not content.startswith(_NAME):
        raise LoadError("it is not a file that diffppl.save wrote.")
    line, _, rest = content.partition(b"\n")
    try:
        version, checksum, length = line.removeprefix(_NAME).decode("ascii").split(" ")
        version, checksum, length = int(version), int(checksum, 16), int(length)
        if version < 1:
            raise ValueError(version)
    except ValueError:
        raise LoadError("it is damaged: its first line is invalid.") from None
    if version > _FORMAT:
        raise LoadError(
            f"it has format {version}, and this version of diffppl reads up to format {_FORMAT}: "
            "upgrade diffppl."
        )
    if zlib.crc32(rest) != checksum or not 0 <= length <= len(rest):
        raise LoadError("it is damaged or cut short: its checksum is wrong.")
    return rest[:length], memoryview(rest)[length:]


def _read(text: bytes, data: memoryview, like: Any) -> Any:
    """Split the bytes into arrays and rebuild the object from its description."""
    content = json.loads(text)
    arrays, offset = [], 0
    for entry in content["arrays"]:
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        size = prod(shape) * dtype.itemsize
        arrays.append(np.frombuffer(data[offset : offset + size], dtype).reshape(shape))
        offset += size
    if offset != len(data):
        raise LoadError("it is damaged: its arrays have the wrong length.")
    return Rebuilder(arrays).rebuild(content["value"], like, "model")

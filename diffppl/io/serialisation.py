"""Models in files: `save` and `load`.

A file is one line of text, a description in JSON (see `structure`) and the bytes of the arrays,
one after the other, little-endian, in row-major order:

    diffppl <format> <CRC-32 of the rest> <length of the JSON>
    {"arrays": [{"dtype": "float32", "shape": [2, 3]}, ...], "value": ...}
    ...

Loading never runs code from a file, nor imports what a file names. Numbers come back bit by bit,
in their own dtype, so a loaded model draws the same samples from the same key.
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

    The file appears whole or not at all: an interrupted save leaves an older one as it was.

    Args:
        path: of the file; by custom it ends in `.dppl`.
        model: a model, network, process or schedule; tuples, lists and dictionaries of them.
        needs_like: save classes that diffppl does not know too, by their arrays alone. Such a
            file needs `load(path, like=...)`.

    Raises:
        TypeError: the model holds a class that diffppl does not know, or `path` is no path;
            nothing is written.
        OSError: the file cannot be written.

    Example:
        >>> dp.save("roll.dppl", model)
        >>> model = dp.load("roll.dppl")
    """
    check_path("path", path)
    if not needs_like and isinstance(getattr(model, "model", None), eqx.Module):
        raise TypeError(f"model={described(model)} is more than a model: pass its .model.")
    describer = Describer(foreign=needs_like)
    value = describer.describe(model, "model")
    arrays = [{"dtype": array.dtype.name, "shape": array.shape} for array in describer.arrays]
    text = json.dumps({"arrays": arrays, "value": value}, allow_nan=False).encode()
    parts = [text, *(array.tobytes() for array in describer.arrays)]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
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
    """Read what `save` wrote.

    Args:
        path: of the file.
        like: a model of the same shape, which supplies the structure of the classes that diffppl
            does not know; only its structure is used, not its numbers.

    Raises:
        FileNotFoundError: there is no such file.
        LoadError: it is not a diffppl file, is damaged or from a newer version, or needs `like`.

    Example:
        >>> dp.save("mine.dppl", model, needs_like=True)    # model.network is a class of my own
        >>> model = dp.load("mine.dppl", like=model)
    """
    content = Path(check_path("path", path)).read_bytes()
    try:
        text, data = _open(content)
        try:
            return _read(text, data, like)
        except LoadError:
            raise
        except Exception as error:  # the checksum was right, so only a forged file comes here
            raise LoadError(f"its description makes no sense ({error!r}).") from error
    except LoadError as error:
        raise LoadError(f"{os.fspath(path)!r} cannot be loaded: {error}") from error.__cause__


def _open(content: bytes) -> tuple[bytes, memoryview]:
    """The description and the arrays' bytes, once the first line and the checksum are right."""
    if not content.startswith(_NAME):
        raise LoadError("it is not a file that diffppl.save wrote.")
    line, _, rest = content.partition(b"\n")
    try:
        version, checksum, length = line.removeprefix(_NAME).decode("ascii").split(" ")
        version, checksum, length = int(version), int(checksum, 16), int(length)
        if version < 1:
            raise ValueError(version)
    except ValueError:
        raise LoadError("it is damaged: its first line makes no sense.") from None
    if version > _FORMAT:
        raise LoadError(
            f"it has format {version}, and this version of diffppl reads up to format {_FORMAT}: "
            "upgrade diffppl."
        )
    if zlib.crc32(rest) != checksum or not 0 <= length <= len(rest):
        raise LoadError("it is damaged or cut short: its checksum is wrong.")
    return rest[:length], memoryview(rest)[length:]


def _read(text: bytes, data: memoryview, like: Any) -> Any:
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

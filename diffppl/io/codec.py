"""Conversion of objects to descriptions and arrays, and back, without running code of theirs.

A description consists of JSON values. Types that JSON does not have are tagged dictionaries:

| `is`       | other entries        | stands for                                                 |
| ---------- | -------------------- | ---------------------------------------------------------- |
| `module`   | `class`, `fields`    | an `eqx.Module` of a known class, field by field           |
| `array`    | `index`              | a JAX array, at that index of the list of arrays           |
| `numpy`    | `index`              | a NumPy array                                              |
| `scalar`   | `index`              | a NumPy scalar                                             |
| `function` | `name`               | a known function, such as an activation                    |
| `partial`  | `function`, `items`  | a `functools.partial` of one                               |
| `tuple`    | `items`              | a tuple                                                    |
| `dict`     | `items`              | a dictionary, as a list of pairs                           |
| `float`    | `value`              | NaN or an infinity                                         |
| `foreign`  | `indices`, `name`    | the arrays of any other object; `like` supplies the rest   |

*Known* classes are the modules of this package and of `equinox.nn`; known functions are those of
`ACTIVATIONS`. Both are looked up in dictionaries of loaded objects: a description cannot cause an
import, and modules are rebuilt without calling `__init__`.
"""

import dataclasses
import functools
import inspect
import math
import sys
from collections.abc import Callable
from typing import TypeGuard, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree

from ..schedules import RENAMED, Schedule

Description = dict | list | str | int | float | bool | None  # JSON

_PACKAGE = __name__.partition(".")[0]
_NN = "relu relu6 sigmoid softplus soft_sign silu gelu elu selu celu leaky_relu log_sigmoid mish"
_JNP = "tanh sin cos exp expm1 log log1p abs square sqrt"
# The default activations of `equinox.nn.MLP` are private functions of Equinox.
_MLP_DEFAULTS = inspect.signature(eqx.nn.MLP.__init__).parameters

ACTIVATIONS: dict[str, Callable] = {
    **{f"jax.nn.{name}": getattr(jax.nn, name) for name in _NN.split()},
    **{f"jax.numpy.{name}": getattr(jnp, name) for name in _JNP.split()},
    "equinox.nn.MLP.activation": _MLP_DEFAULTS["activation"].default,
    "equinox.nn.MLP.final_activation": _MLP_DEFAULTS["final_activation"].default,
}


class LoadError(ValueError):
    """A file cannot be loaded; the message has its path and the reason."""


class MismatchError(LoadError):
    """A file is sound, but does not fit `like`."""


def known_classes() -> dict[str, type]:
    """Return the classes that descriptions may name: modules of this package and `equinox.nn`."""
    known = {f"equinox.nn.{name}": value for name, value in vars(eqx.nn).items()}
    for module, content in list(sys.modules.items()):
        if module.partition(".")[0] == _PACKAGE:
            own = [value for value in vars(content).values() if _is_module(value)]
            known |= {f"{module}.{c.__qualname__}": c for c in own if c.__module__ == module}
    return {name: value for name, value in known.items() if _is_module(value)}


def _field_names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _is_module(value: object) -> TypeGuard[type[eqx.Module]]:
    return isinstance(value, type) and issubclass(value, eqx.Module)


@final
class Describer:
    """Converts objects to descriptions and collects their arrays.

    Args:
        foreign: describe unknown objects by their arrays alone, instead of raising.
    """

    def __init__(self, *, foreign: bool) -> None:
        self.arrays: list[np.ndarray] = []
        self._foreign = foreign
        self._classes = {cls: name for name, cls in known_classes().items()}
        self._functions = {id(function): name for name, function in ACTIVATIONS.items()}

    def _store(self, array: ArrayLike | np.generic) -> int:
        values = np.asarray(array)
        # In native byte order, which is little-endian wherever JAX runs.
        self.arrays.append(values.astype(values.dtype.newbyteorder("="), copy=False))
        return len(self.arrays) - 1

    def describe(self, value: PyTree, path: str) -> Description:
        """Return the description of `value`, which error messages call `path`.

        Raises:
            TypeError: it is or contains an unknown object, and `foreign` is false; or a JAX key.
        """
        # Exact types: a subclass, such as a named tuple, would not be rebuilt as itself.
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"is": "float", "value": str(value)}
        if type(value) is list:
            return [self.describe(item, f"{path}[{i}]") for i, item in enumerate(value)]
        if type(value) is tuple:
            return {"is": "tuple", "items": self.describe(list(value), path)}
        if type(value) is dict:
            pairs = [[k, self.describe(v, f"{path}[{k!r}]")] for k, v in value.items()]
            if all(isinstance(key, str) for key in value):
                return {"is": "dict", "items": pairs}
        if isinstance(value, jax.Array | np.ndarray) and is_plain(value.dtype):
            kind = "array" if isinstance(value, jax.Array) else "numpy"
            return {"is": kind, "index": self._store(value)}
        if isinstance(value, np.generic) and is_plain(value.dtype):
            return {"is": "scalar", "index": self._store(value)}
        if id(value) in self._functions:
            return {"is": "function", "name": self._functions[id(value)]}
        if type(value) is functools.partial:
            items = [self.describe(item, path) for item in (value.args, value.keywords)]
            return {"is": "partial", "function": self.describe(value.func, path), "items": items}
        if type(value) in self._classes:
            fields = {
                name: self.describe(getattr(value, name), f"{path}.{name}")
                for name in _field_names(type(value))
            }
            return {"is": "module", "class": self._classes[type(value)], "fields": fields}
        return self._describe_foreign(value, path)

    def _describe_foreign(self, value: PyTree, path: str) -> Description:
        leaves = [leaf for leaf in jax.tree.leaves(value) if eqx.is_array(leaf)]
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if any(not is_plain(leaf.dtype) for leaf in leaves):
            raise TypeError(f"{path} holds a JAX key, which is not saved. Save its key_data.")
        if not self._foreign:
            raise TypeError(
                f"{path} is a {kind}, which diffppl cannot rebuild: files contain no code. Save "
                "with save(path, model, needs_like=True), which keeps its arrays, and load with "
                "load(path, like=model), with a model of the same shape made by the same code. "
                "(Supported are the modules of diffppl and of equinox.nn, and activations of "
                "jax.nn.)"
            )
        return {"is": "foreign", "name": kind, "indices": [self._store(leaf) for leaf in leaves]}


@final
class Rebuilder:
    """Rebuilds objects from descriptions.

    Args:
        arrays: the collected arrays.
    """

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self._arrays = arrays
        # The classes of older files had the same fields.
        renamed = {f"{_PACKAGE}.schedules.{name}": Schedule for name in RENAMED}
        self._classes = known_classes() | renamed

    def rebuild(self, description: Description, like: PyTree, path: str) -> PyTree:
        """Return the described object; `like` supplies the structure of its foreign parts.

        Raises:
            LoadError: the description is invalid, or fits neither this version nor `like`.
        """
        if isinstance(description, list):
            return [
                self.rebuild(item, _part(like, i), f"{path}[{i}]")
                for i, item in enumerate(description)
            ]
        if not isinstance(description, dict):
            return description
        match description:
            case {"is": "tuple", "items": list(items)}:
                return tuple(self.rebuild(items, like, path))
            case {"is": "dict", "items": list(pairs)}:
                return {
                    key: self.rebuild(item, _part(like, key), f"{path}[{key!r}]")
                    for key, item in pairs
                }
            case {"is": "float", "value": "inf" | "-inf" | "nan" as value}:
                return float(value)
            case {"is": "array", "index": int(index)}:
                return self._array(index, path)
            case {"is": "numpy", "index": int(index)}:
                return self._arrays[index].copy()
            case {"is": "scalar", "index": int(index)}:
                return self._arrays[index][()]
            case {"is": "function", "name": str(name)}:
                if name in ACTIVATIONS:
                    return ACTIVATIONS[name]
                raise LoadError(
                    f"{path} is the function {name}, which this version of diffppl lacks."
                )
            case {"is": "partial", "function": function, "items": [args, keywords]}:
                function = self.rebuild(function, None, path)
                args, keywords = (self.rebuild(item, None, path) for item in (args, keywords))
                return functools.partial(function, *args, **keywords)
            case {"is": "module", "class": str(name), "fields": dict(fields)}:
                return self._module(name, fields, like, path)
            case {"is": "foreign", "name": str(name), "indices": list(indices)}:
                return self._foreign(name, indices, like, path)
        raise LoadError(f"{path} has the invalid description {str(description)[:80]}.")

    def _array(self, index: int, path: str) -> jax.Array:
        array = self._arrays[index]
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            raise LoadError(
                f"{path} has dtype {array.dtype}, which is disabled in JAX: call "
                "jax.config.update('jax_enable_x64', True) first."
            )
        return jax.device_put(array)

    def _module(self, name: str, fields: dict, like: PyTree, path: str) -> eqx.Module:
        cls = self._classes.get(name)
        if cls is None:
            raise LoadError(f"{path} is a {name}, which this version of diffppl lacks.")
        wanted = _field_names(cls)
        if set(wanted) != set(fields):
            raise LoadError(
                f"{path} is a {name} with fields {sorted(fields)}, but in this version of diffppl "
                f"the class has {sorted(wanted)}: it was saved by another version."
            )
        module = object.__new__(cls)  # without `__init__`, which takes other arguments
        for field, description in fields.items():
            value = self.rebuild(description, getattr(like, field, None), f"{path}.{field}")
            object.__setattr__(module, field, value)
        return module

    def _foreign(self, name: str, indices: list[int], like: PyTree, path: str) -> PyTree:
        if like is None:
            raise LoadError(
                f"{path} is a {name}, of which the file has only the arrays. Pass like=model, with "
                "a model of the same shape made by the same code."
            )
        leaves, structure = jax.tree.flatten(like)
        places = [i for i, leaf in enumerate(leaves) if eqx.is_array(leaf)]
        expected = [(leaves[i].shape, leaves[i].dtype) for i in places]
        saved = [(self._arrays[i].shape, self._arrays[i].dtype) for i in indices]
        if expected != saved:
            pairs = zip(saved, expected, strict=False)
            first = next((pair for pair in pairs if pair[0] != pair[1]), "the last")
            raise MismatchError(
                f"like does not fit at {path}: the file has the {len(saved)} arrays of a {name}, "
                f"and like has {len(expected)} there. The first to differ: {first}."
            )
        # Saved arrays replace those of `like` in the order of its leaves.
        for i, index in zip(places, indices, strict=True):
            is_jax = isinstance(leaves[i], jax.Array)
            leaves[i] = self._array(index, path) if is_jax else self._arrays[index].copy()
        return jax.tree.unflatten(structure, leaves)


def is_plain(dtype: object) -> bool:
    """Return whether arrays of this dtype can be saved."""
    return isinstance(dtype, np.dtype) and dtype.name in DTYPES


_NAMES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64"
DTYPES: dict[str, np.dtype] = {
    name: jnp.dtype(name) for name in [*_NAMES.split(), "complex128", "bfloat16"]
}


def _part(like: PyTree, key: int | str) -> PyTree:
    """Return an item of `like`, and None if it has no such item."""
    try:
        return like[key]
    except (TypeError, KeyError, IndexError):
        return None

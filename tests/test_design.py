"""The house rules that can be checked: classes, imports, names, sizes."""

import ast
import graphlib
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import pytest
from numpyro.distributions import Distribution

import diffppl as dp
from diffppl.conditioning import AbstractMethod
from diffppl.conditioning.twists import AbstractCovariance, AbstractPower
from diffppl.fitting.losses import AbstractLoss
from diffppl.likelihood.elbo import AbstractSteps
from diffppl.networks.layers.padding import AbstractPadding
from diffppl.predictions.prediction import AbstractMeanHead, AbstractPrediction, AbstractVariance
from diffppl.processes import AbstractProcess

from . import registry

PACKAGE = Path(dp.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = [
    "processes",
    "denoisers",
    "networks",
    "predictions",
    "model",
    "io",
    "data",
    "samplers",
    "likelihood",
    "fitting",
    "conditioning",
    "calibration",
]

# Every file and room, lowest first: imports go to what stands before, or stay in the room. Imports
# inside functions, and those for types alone, are no exceptions.
HOUSE = [
    "linalg",
    "checks",
    "arviz",
    "batching",
    "schedules",
    "processes",
    "denoisers",
    "networks",
    "predictions",
    "model",
    "io",
    "data",
    "samplers",
    "likelihood",
    "fitting",
    "conditioning",
    "calibration",
    "plots",
]


def relative(path):
    return str(path.relative_to(PACKAGE))


def modules():
    names = [m.name for m in pkgutil.walk_packages(dp.__path__, "diffppl.")]
    return [importlib.import_module(name) for name in names]


def classes():
    """Every module and distribution that the package defines."""
    found = {
        value
        for module in modules()
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, eqx.Module | Distribution)
        and value.__module__.startswith("diffppl.")
    }
    return sorted(found, key=lambda cls: (cls.__module__, cls.__qualname__))


def class_id(cls):
    return f"{cls.__module__.removeprefix('diffppl.')}.{cls.__name__}"


def is_final(cls):
    return cls.__dict__.get("__final__", False)


def is_abstract(cls):
    return inspect.isabstract(cls) or bool(getattr(cls, "__abstractvars__", ()))


# Classes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", classes(), ids=class_id)
def test_a_class_is_abstract_or_final(cls):
    named_abstract = cls.__name__.lstrip("_").startswith("Abstract")
    assert is_abstract(cls) == named_abstract, "abstract classes, and they alone, are called so"
    assert is_final(cls) != named_abstract, "a class that is not abstract needs typing.final"
    for base in cls.__mro__[1:]:
        assert not is_final(base), f"it inherits from {base.__name__}, which is final"


@pytest.mark.parametrize("cls", [cls for cls in classes() if is_final(cls)], ids=class_id)
def test_a_final_class_overrides_nothing_that_is_implemented(cls):
    for base in cls.__mro__[1:]:
        if not base.__module__.startswith("diffppl."):
            continue
        for name, value in vars(base).items():
            if inspect.isfunction(value) and not name.startswith("__"):
                abstract = getattr(value, "__isabstractmethod__", False)
                assert abstract or name not in vars(cls), f"{base.__name__}.{name} is implemented"


# Every implementation has a row in the registry, and with it the contracts ---------------------


def rows(kind):
    """The classes that the registry makes, of one kind."""
    schedule = dp.schedules.reciprocal(4)
    made = {
        dp.schedules.AbstractSchedule: lambda: [make(4) for make in registry.SCHEDULES.values()],
        AbstractProcess: lambda: [make(schedule) for make in registry.PROCESSES.values()],
        AbstractPrediction: lambda: [make() for make in registry.PREDICTIONS.values()],
        AbstractVariance: lambda: [
            prediction.variance
            for make in registry.PREDICTIONS.values()
            if hasattr(prediction := make(), "variance")
        ],
        AbstractMeanHead: lambda: [
            prediction.head
            for make in registry.PREDICTIONS.values()
            if hasattr(prediction := make(), "head")
        ],
        dp.denoisers.AbstractDenoiser: lambda: [
            known.model(schedule).network for known in registry.KNOWN.values()
        ],
        dp.data.AbstractSource: lambda: [make() for make in registry.SOURCES.values()],
        dp.samplers.AbstractSampler: lambda: [make() for make in registry.SAMPLERS.values()],
        dp.twists.AbstractTwist: lambda: [make() for make in registry.TWISTS.values()],
        AbstractCovariance: lambda: [
            twist.covariance
            for make in registry.TWISTS.values()
            if hasattr(twist := make(), "covariance")
        ],
        AbstractPower: lambda: [
            twist.power for make in registry.TWISTS.values() if hasattr(twist := make(), "power")
        ],
        AbstractMethod: lambda: [make(4) for make in registry.METHODS.values()],
        dp.chains.AbstractChain: lambda: [make() for make in registry.REVERSE_CHAINS.values()],
        AbstractLoss: lambda: [make(4) for make in registry.LOSSES.values()],
        AbstractSteps: lambda: [
            loss.steps for make in registry.LOSSES.values() if hasattr(loss := make(4), "steps")
        ],
        dp.likelihood.AbstractTrace: lambda: [make() for make in registry.TRACES.values()],
        AbstractPadding: lambda: [make() for make in registry.PADDINGS.values()],
    }
    return {type(value) for value in made[kind]()}


@pytest.mark.parametrize(
    "kind",
    [
        dp.schedules.AbstractSchedule,
        AbstractProcess,
        AbstractPrediction,
        AbstractVariance,
        AbstractMeanHead,
        dp.denoisers.AbstractDenoiser,
        dp.data.AbstractSource,
        dp.samplers.AbstractSampler,
        dp.twists.AbstractTwist,
        AbstractCovariance,
        AbstractPower,
        AbstractMethod,
        dp.chains.AbstractChain,
        AbstractLoss,
        AbstractSteps,
        dp.likelihood.AbstractTrace,
        AbstractPadding,
    ],
    ids=lambda kind: kind.__name__,
)
def test_every_implementation_has_a_row(kind):
    written = {cls for cls in classes() if issubclass(cls, kind) and is_final(cls)}
    assert written == rows(kind)


def test_every_resampling_scheme_has_a_row():
    assert set(registry.RESAMPLING) == set(dp.resampling.__all__)


def test_every_network_has_a_row():
    written = {
        value
        for value in vars(dp.networks).values()
        if inspect.isclass(value)
        and is_final(value)
        and not issubclass(value, dp.denoisers.AbstractDenoiser)
    }
    key = jax.random.key(0)
    made = {type(make(key, (3,), (3,), 4)) for make in registry.NETWORKS.values()}
    assert written == made | {
        type(make(key, (4, 4), (4, 4), 4)) for make in registry.IMAGE_NETWORKS.values()
    }


# Files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_file_is_longer_than_300_lines(path):
    length = len(path.read_text().splitlines())
    assert length <= 300


def code_length(function, lines):
    """The lines of a function without docstrings, comments and blank lines."""
    prose = {
        line
        for node in ast.walk(function)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node)
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    code = (
        lines[i - 1].strip()
        for i in range(function.lineno, function.end_lineno + 1)
        if i not in prose
    )
    return sum(bool(line) and not line.startswith("#") for line in code)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_function_is_longer_than_60_lines_of_code(path):
    text = path.read_text()
    long = {
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and code_length(node, text.splitlines()) > 60
    }
    assert not long


def module_name(path):
    """The name of a module inside the package; of an `__init__`, that of its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path): path for path in FILES}


def imports(path):
    """The modules of the package that a file imports, wherever in the file."""
    package = path.relative_to(PACKAGE).parts[:-1]  # of a room's `__init__` the room itself
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            assert not any(name.split(".")[0] == "diffppl" for name in names), "import relatively"
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module.split(".")[0] != "diffppl", "import relatively"
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - (node.level - 1)], *filter(None, [node.module])]
            for alias in node.names:  # a module, or something in one
                name = ".".join([*base, alias.name])
                yield name if name in NAMES else ".".join(base)


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.parent != PACKAGE or p.stem != "__init__"], ids=relative
)
def test_imports_go_down(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in HOUSE, f"{own} is new: give it a place in HOUSE"
    for name in imports(path):
        unit = name.split(".")[0]
        assert HOUSE.index(unit) <= HOUSE.index(own), f"{own} stands below {unit}"


def test_imports_have_no_circle():
    """A module is not imported, by any path, by one that it imports."""
    graph = {name: {*imports(path)} - {name} for name, path in NAMES.items()}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_few_files_are_loose():
    assert len(list(PACKAGE.glob("*.py"))) <= 8


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is(room):
    text = " ".join(inspect.getdoc(importlib.import_module(f"diffppl.{room}")).split())
    for part in ("*What lives here*", "*The contract*", "*To add one*", "*What does not belong"):
        assert part in text, f"the docstring of {room} lacks {part}"


# Names -------------------------------------------------------------------------------------------


def test_the_public_face_is_sorted_and_documented():
    assert dp.__all__ == sorted(dp.__all__)
    assert len(set(dp.__all__)) == len(dp.__all__) <= 60
    for name in dp.__all__:
        assert inspect.getdoc(getattr(dp, name)), f"{name} has no docstring"


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_what_is_public_is_documented(module):
    """A method may inherit the docstring of the abstract one that it implements."""
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    for name, value in own.items():
        if getattr(value, "__module__", None) != module.__name__ or not callable(value):
            continue
        assert inspect.getdoc(value), f"{name} has no docstring"
        if inspect.isclass(value):
            for method, function in vars(value).items():
                if inspect.isfunction(function) and not method.startswith("_"):
                    found = inspect.getdoc(getattr(value, method))
                    assert found, f"{name}.{method} has no docstring"


def test_the_public_face_has_all_that_is_imported_for_it():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == set(dp.__all__)


def test_public_modules_list_their_names():
    for module in (getattr(dp, name) for name in dp.__all__):
        if inspect.ismodule(module):
            assert all(hasattr(module, name) for name in module.__all__), module.__name__


OTHER_VERBS = ("assert_", "ensure_", "refuse_", "require_", "validate_", "verify_")


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_checks_are_called_checks(path):
    """`check_*` raises, `warn_*` warns, `as_*` converts."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert not node.name.lstrip("_").startswith(OTHER_VERBS), node.name


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_what_users_pass_has_a_type(path):
    named = {"key", "data", "context", "program", "method", "model", "x_0"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.arg) and node.arg in named and node.annotation is not None:
            assert ast.unparse(node.annotation) != "Any", f"{node.arg}, line {node.lineno}"


def is_key(argument):
    """Whether an argument is a JAX key, and not, say, that of a dictionary."""
    kind = "Any" if argument.annotation is None else ast.unparse(argument.annotation)
    named = argument.arg == "key" or argument.arg.startswith("key_")
    return named and ("Array" in kind or kind == "Any")


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_keys_are_explicit(path):
    tree = ast.parse(path.read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for function in (*tree.body, *(node for cls in classes for node in cls.body)):
        if not isinstance(function, ast.FunctionDef):
            continue
        arguments, where = function.args, f"{function.name}, line {function.lineno}"
        positional = [*arguments.posonlyargs, *arguments.args]
        defaulted = positional[len(positional) - len(arguments.defaults) :] + [
            argument
            for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
            if value is not None
        ]
        assert not any(map(is_key, defaulted)), f"{where}: a key has a default"
        positional = [a for a in positional if a.arg not in ("self", "cls")]
        assert not any(map(is_key, positional[1:])), f"{where}: a key comes first, or by keyword"
        if function.name == "__init__":
            assert not any(map(is_key, positional)), f"{where}: constructors take `*, key`"


def test_importing_is_light():
    heavy = ["matplotlib", "arviz", "xarray", "pandas", "sklearn"]
    code = f"import sys, diffppl; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

"""Wrong and odd calls of the public face: refused by name with a remedy, or accepted and right.

Calls are written as a user would type them. To be refused is a call whose error must have some
words, with " | " between them: the argument as it was typed, and what to do. To be accepted is an
odd call, with a plain one of the same result. What is like a slip that is here belongs beside it.
"""

# ruff: noqa: F401 (the calls, which are written in strings, use what is imported)

import inspect
import warnings
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd
import pytest
from numpyro import handlers

import diffppl as dp
from diffppl import denoisers, networks, predictions, samplers, schedules
from diffppl.data import Crops, DeadLeaves, Dequantised, Flipped, InMemory, SwissRoll
from diffppl.fitting.fit import fit as fit_whole
from diffppl.likelihood import ExactTrace, Hutchinson, bits_per_dim, parzen

from .marks import slow

ContextDropout, ELBOLoss = dp.losses.ContextDropout, dp.losses.ELBOLoss
SimpleLoss, WeightedLoss = dp.losses.SimpleLoss, dp.losses.WeightedLoss
KEY, NAN = jax.random.key(0), float("nan")
S, R = schedules.cosine(8), schedules.reciprocal(6)
G, B = dp.GaussianDiffusion(S), dp.BernoulliDiffusion(R, 0.3)
C = dp.CategoricalDiffusion(R, 3)


def mlp(**options: Any) -> networks.MLP:
    return networks.MLP(**{"event_shape": (2,), "width": 8, "depth": 1, "key": KEY} | options)


def unet(**options: Any) -> networks.UNet:
    return networks.UNet(**{"event_shape": (4, 4), "channels": (4,), "key": KEY} | options)


def rbf(**options: Any) -> networks.RBF:
    return networks.RBF(**{"event_shape": (4, 4), "num_steps": 6, "key": KEY} | options)


def sigmoid_mlp(**options: Any) -> networks.SigmoidMLP:
    return networks.SigmoidMLP(**{"event_shape": (4, 4), "num_steps": 6, "key": KEY} | options)


def multi_scale(**options: Any) -> networks.MultiScaleConv:
    return networks.MultiScaleConv(**{"event_shape": (8,), "num_steps": 6, "key": KEY} | options)


NET = mlp()
M = dp.DiffusionModel(G, NET, (2,), scaling=dp.Scaling(0.0, 1.0))
BITS = dp.DiffusionModel(B, NET, (2,))
STATES = dp.DiffusionModel(C, mlp(output_shape=(2, 3), num_categories=3), (2,))
TOLD = dp.DiffusionModel(G, mlp(context_shape=(1,)), (2,), context_shape=(1,), scaling=M.scaling)
WIDE = dp.DiffusionModel(G, mlp(event_shape=(4,)), (4,), scaling=dp.Scaling(0.5, 1.0))
X = np.random.default_rng(0).normal(size=(40, 2))
X = X / np.sqrt(np.mean(X**2))
IMAGES = np.zeros((5, 8, 8, 3), np.uint8)
FIRST = np.zeros((5, 3, 8, 8))  # images, channels first
MASKED, PAIR = np.ma.masked_less(X, 0), np.ma.array([1.0, 2.0], mask=[0, 1])
TABLE = pd.DataFrame({"age": [30.0, 41.0], "sex": ["m", "f"]})
MISSING = pd.DataFrame({"age": [30.0, 41.0], "children": pd.array([1, None], dtype="Int64")})


def seeded(program: Any, *args: Any) -> Any:
    return handlers.seed(program, KEY)(*args)


def fit(*args: Any, **options: Any) -> dp.FitResult:
    return fit_whole(
        *args, **{"num_iterations": 1, "progress_bar": False, "batch_size": 8} | options
    )


RESULT, BOUND = fit(KEY, M, X), dp.elbo(KEY, M, X)


class Drawn(dp.data.AbstractSource):
    """One number for all, and one context."""

    value: Any
    context: Any = None

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (2,)

    def batch(self, key: Any, size: int) -> Any:
        context = None if self.context is None else jnp.full((size, 1), self.context)
        return jnp.full((size, 2), self.value), context


pytestmark = pytest.mark.usefixtures("as_users_call_it")


def called(code: str) -> Any:
    """What a call of this file's names returns."""
    return eval(code, globals())


# What is refused ---------------------------------------------------------------------------------

REFUSED: dict[str, tuple[type[Exception], str]] = {}
ALONE = ["@"]


def refuse(error: type[Exception], calls: list[str], rows: str) -> None:
    """Each of the rows in each of the calls.

    Args:
        error: that they raise.
        calls: with "@" where what is wrong goes. "x_0 = call" says what it is called, NAME in rows.
        rows: what is wrong, and on the same line or the next one "-> words".
    """
    for row in inspect.cleandoc(rows).replace("\n->", " ->").splitlines():
        wrong, words = row.split(" -> ")
        for call in calls:
            name, _, template = call.rpartition(" = ")
            code = template.replace("@", wrong)
            assert code not in REFUSED, code
            REFUSED[code] = (error, words.replace("NAME", name))


# Keys, wherever one is taken

TAKE_KEYS = [
    "dp.sample(@, M, (2,))",
    "dp.sample_path(@, M, (2,))",
    "dp.elbo(@, M, X)",
    "dp.importance_bound(@, M, X[:3], num_particles=2)",
    "dp.jarzynski(@, M, X[:3], num_trajectories=2)",
    "dp.flow_likelihood(@, M, X[:3])",
    "dp.entropy_bounds(@, M, X)",
    "fit(@, M, X).model",
    "dp.data.dequantise(@, IMAGES)",
    "InMemory(X).batch(@, 3)",
    "Dequantised(IMAGES).batch(@, 3)",
    "Flipped(IMAGES).batch(@, 3)",
    "Crops(IMAGES, (4, 4)).batch(@, 3)",
    "SwissRoll().batch(@, 3)",
    "DeadLeaves((3, 3), (1.0, 2.0)).batch(@, 2)",
    "mlp(key=@)",
    "rbf(key=@)",
    "sigmoid_mlp(key=@)",
    "unet(key=@)",
    "multi_scale(key=@)",
]
refuse(
    TypeError,
    TAKE_KEYS,
    """
    0 -> key=0 must be a typed key, such as jax.random.key(0)
    np.int64(1) -> key=np.int64(1) must be a typed key
    None -> key=None must be a typed key
    np.zeros(2) -> key=<array of shape (2,)> must be a typed key
    np.zeros(3, np.uint32) -> key is not a key | jax.random.key(0)
    jax.random.split(KEY, 3) -> key has shape (3,) | key[0], or split
    jax.random.split(jax.random.PRNGKey(0), 3) -> key has shape (3,) | key[0], or split
    M -> key=<DiffusionModel> must be a typed key
    """,
)

# Models, wherever one is taken

refuse(
    TypeError,
    [
        "dp.sample(KEY, @, (2,))",
        "dp.sample_path(KEY, @, (2,))",
        "dp.elbo(KEY, @, X)",
        "dp.importance_bound(KEY, @, X, num_particles=2)",
        "dp.jarzynski(KEY, @, X, num_trajectories=2)",
        "dp.flow_likelihood(KEY, @, X)",
        "dp.flow_log_density(@, X)",
        "dp.entropy_bounds(KEY, @, X)",
        "fit(KEY, @, X)",
        "dp.guided(@, 1.0)",
        "dp.clipped(@, 0.0, 1.0)",
        "dp.respaced(@, 2)",
    ],
    """
    RESULT -> model=<FitResult> must be a DiffusionModel: pass its .model.
    M() -> model=<DiffusionDistribution> must be a DiffusionModel: pass its .model.
    NET -> model=<MLP> must be a DiffusionModel
    G -> model=<GaussianDiffusion> must be a DiffusionModel
    X[:2] -> model=<array of shape (2, 2)> must be a DiffusionModel
    None -> model=None must be a DiffusionModel
    "m.dppl" -> model='m.dppl' must be a DiffusionModel
    dp.DiffusionModel -> model=<class DiffusionModel> must be a DiffusionModel, and not its class
    """,
)

# Data, wherever they enter

TAKE_DATA = [
    "x_0 = dp.elbo(KEY, M, @)",
    "x_0 = dp.importance_bound(KEY, M, @, num_particles=2)",
    "x_0 = dp.jarzynski(KEY, M, @, num_trajectories=2)",
    "x_0 = dp.flow_likelihood(KEY, M, @)",
    "x_0 = dp.entropy_bounds(KEY, M, @)",
    "data = fit(KEY, M, @)",
    "validation_data = fit(KEY, M, X, validation_data=@)",
    "data = fit(KEY, M, InMemory(@))",
]
TAKE_PROGRAMS = [
    "x_0 = seeded(M.forward, @)",
    "obs = seeded(M.reverse, None, @)",
    "obs = seeded(M.guide, None, @)",
]
TAKE_NUMBERS = [
    *TAKE_DATA,
    *TAKE_PROGRAMS,
    "samples = parzen(@, X, X)",
    "x_test = parzen(X, X, @)",
    "data = dp.Scaling.from_data(@)",
]
refuse(
    TypeError,
    TAKE_NUMBERS,
    """
    "x" -> NAME has dtype <U1; it must hold real numbers
    "data.csv" -> NAME has dtype <U8; it must hold real numbers
    {"a": [1.0]} -> NAME=<dict> must be an array of real numbers
    (x for x in X) -> NAME=<generator> must be an array of real numbers
    len -> NAME=<builtin_function_or_method> must be an array of real numbers
    X * 1j -> NAME has dtype complex128; it must hold real numbers
    jax.random.split(KEY, 2) -> NAME=<array of shape (2,)> must hold real numbers
    MASKED -> NAME is a masked array with masked entries | leave those rows out
    [PAIR, PAIR] -> NAME is a masked array with masked entries
    TABLE -> NAME has dtype object; it must hold real numbers | sex | Encode categories
    MISSING -> NAME has dtype object | children | leave out missing entries
    [[1.0, None], [2.0, 3.0]] -> 1 of its 4 entries are not numbers (a NoneType at [0, 1])
    np.array([["2020-01-01", "2020-01-02"]], "datetime64[D]") -> NAME has dtype datetime64[D]
    """,
)
refuse(
    ValueError,
    TAKE_NUMBERS,
    """
    [[1.0, 2.0], [3.0]] -> NAME has rows of different lengths
    np.where(X > 1, NAN, X) -> NAME | of 80 values (nan at [
    np.where(X > 2, np.inf, X) -> NAME | of 80 values (inf at [
    """,
)
refuse(
    ValueError,
    TAKE_DATA,
    """
    X[0] -> NAME has shape (2,), but the model's events have shape (2,), so it needs shape (n, 2)
    X[:, :1] -> NAME has shape (40, 1) | (n, 2)
    X[:0] -> NAME is empty
    [[0.0, 1e300], [0.0, 1.0]] -> NAME has 1 of 4 values (1e+300 at [0, 1]) beyond float32
    """,
)
refuse(
    TypeError, ["data = @"], "fit(KEY, M, SwissRoll) -> data=<class SwissRoll> must be an array or"
)

# Bits and categories: numbers of 64 bits do not wrap round, and fractions are not cut

for model, support in (
    ("BITS", "support of BernoulliDiffusion, Boolean()"),
    ("STATES", "support of CategoricalDiffusion, IntegerInterval(lower_bound=0, upper_bound=2)"),
):
    refuse(
        ValueError,
        [
            f"x_0 = dp.elbo(KEY, {model}, @)",
            f"data = fit(KEY, {model}, @)",
            f"obs = seeded({model}.guide, None, @)",
            f"data = fit(KEY, {model}, InMemory(np.float32(@)))",
            f"x_0 = dp.importance_bound(KEY, {model}, pd.DataFrame(@), num_particles=2)",
        ],
        f"""
        [[0, 2**32], [1, 1]] -> NAME has values outside the {support}: 1 of 4 values (4294967296
        [[0, -1], [1, 1]] -> NAME has values outside the {support}: 1 of 4 values (-1
        [[0, 0.5], [1, 1]] -> NAME has values outside the {support}: 1 of 4 values (0.5 at [0, 1])
        [[0, 3], [1, 3]] -> NAME has values outside the {support}: 2 of 4 values (3
        """,
    )
refuse(
    ValueError,
    ALONE,
    """
    fit(KEY, BITS, InMemory(np.array([[0, 2**32 + 1]]))) -> data has 1 of 2 values (4294967297 at
    InMemory(np.array([0, 2**33], np.uint64)) -> data has 1 of 2 values (8589934592 at [1]) beyond
    InMemory([1.0, 2.0], [1, 2**40]) -> context has 1 of 2 values (1099511627776 at [1]) beyond
    InMemory(X, X[:3]) -> context has 3 rows, and data have 40
    fit(KEY, BITS, Drawn(0.5)) -> data has values outside the support | (0.5 at [0, 0], 0.5 at
    fit(KEY, M, Drawn(NAN)) -> data has NaN or infinite values: | (nan at [0, 0]
    fit(KEY, TOLD, Drawn(0.5, NAN)) -> the context that data draws has NaN or infinite values
    """,
)

# Contexts, wherever one is taken

TAKE_CONTEXTS = [
    "dp.sample(KEY, TOLD, (2,), context=@)",
    "dp.sample_path(KEY, TOLD, (2,), context=@)",
    "dp.elbo(KEY, TOLD, X[:2], context=@)",
    "dp.importance_bound(KEY, TOLD, X[:2], num_particles=2, context=@)",
    "dp.flow_log_density(TOLD, X[:2], @)",
    "fit(KEY, TOLD, X[:2], context=@)",
    "TOLD(@)",
]
refuse(
    TypeError,
    TAKE_CONTEXTS,
    """
    "cat" -> context has dtype <U3; it must hold real numbers
    [["a"], ["b"]] -> context has dtype <U1; it must hold real numbers
    {"a": 1} -> context=<dict> must be an array of real numbers
    np.ma.array([[1.0], [2.0]], mask=[[0], [1]]) -> context is a masked array with masked entries
    KEY -> context=<array of shape ()> must hold real numbers
    """,
)
refuse(
    ValueError,
    TAKE_CONTEXTS,
    """
    None -> context is missing: the model has context_shape=(1,), so pass an array of shape (n, 1)
    np.zeros((2, 3)) -> context has shape (2, 3), which does not end in the model's context_shape=(1
    [[NAN], [1.0]] -> context has NaN or infinite values: 1 of 2 values (nan at [0, 0])
    [[1.0], [1.0, 2.0]] -> context has rows of different lengths
    """,
)
refuse(
    ValueError,
    ALONE,
    """
    dp.sample(KEY, M, (2,), context=1.0) -> context was given, but the model has no context_shape
    M(1.0) -> context was given, but the model has no context_shape
    dp.elbo(KEY, TOLD, X, context=np.zeros((3, 1))) -> context has shape (3, 1) | (40, 1)
    fit(KEY, TOLD, X, context=np.zeros((3, 1))) -> context has shape (3, 1) | (40, 1)
    """,
)

# Schedules

refuse(
    ValueError,
    [
        "1 = schedules.linear(@)",
        "1 = schedules.cosine(@)",
        "1 = schedules.log_snr_linear(@)",
        "1 = schedules.reciprocal(@)",
        "1 = schedules.sohl_dickstein(@)",
        "2 = schedules.Learned(@, beta_1=0.1)",
    ],
    """
    1.5 -> num_steps=1.5 must be a whole number, NAME or more
    8.0 -> num_steps=8.0 must be a whole number, NAME or more
    "8" -> num_steps='8' must be a whole number, NAME or more
    None -> num_steps=None must be a whole number, NAME or more
    True -> num_steps=True must be a whole number, NAME or more
    np.True_ -> num_steps=np.True_ must be a whole number, NAME or more
    0 -> num_steps=0 must be a whole number, NAME or more
    -3 -> num_steps=-3 must be a whole number, NAME or more
    NAN -> num_steps=nan must be a whole number, NAME or more
    np.array([8]) -> num_steps=<array of shape (1,)> must be a whole number, NAME or more
    (0.1, 10.0) -> num_steps=(0.1, 10.0) must be a whole number, NAME or more
    """,
)
refuse(
    TypeError,
    [
        "beta_start = schedules.linear(8, @)",
        "beta_end = schedules.linear(8, beta_end=@)",
        "offset = schedules.cosine(8, @)",
        "beta_max = schedules.cosine(8, beta_max=@)",
        "beta_1 = schedules.sohl_dickstein(8, @)",
        "beta_1 = schedules.Learned(8, @)",
        "noise_to_signal = schedules.Learned(8, 0.1, @)",
        "eta = samplers.DDIM(eta=@)",
        "rtol = dp.Integrator(rtol=@)",
        "atol = dp.Integrator(atol=@)",
        "noise = SwissRoll(@)",
        "exponent = DeadLeaves((8, 8), (1.0, 2.0), exponent=@)",
        "rate = ContextDropout(rate=@)",
        "ema_decay = fit(KEY, M, X, ema_decay=@)",
        "learning_rate = dp.default_optimizer(10, @)",
        "level = bits_per_dim(BOUND, (2,), level=@)",
        "fourier_scale = mlp(fourier_features=2, fourier_scale=@)",
    ],
    """
    "x" -> NAME='x' must be one number
    [0.1] -> NAME=[0.1] must be one number
    True -> NAME=True must be one number
    0.1j -> NAME=0.1j must be one number
    np.ones(3) -> NAME=<array of shape (3,)> must be one number
    """,
)
refuse(
    ValueError,
    ALONE,
    """
    schedules.linear(8, NAN) -> beta_start=nan must lie between 0 and 1
    schedules.linear(8, 0.0) -> beta_start=0.0 must lie between 0 and 1
    schedules.linear(8, 0.4, 0.1) -> beta_start=0.4 must not be more than beta_end=0.1
    schedules.cosine(8, np.inf) -> offset=inf must be 0 or more
    schedules.cosine(8, beta_max=NAN) -> beta_max=nan must lie between 0 and 1
    schedules.sohl_dickstein(8, -1) -> beta_1=-1 must lie between 0 and 0.5
    schedules.Learned(8, 0.1, NAN) -> noise_to_signal=nan must be more than 0
    schedules.Learned(8, 0.9, 0.1) -> noise_to_signal=0.1 is less noise than beta_1=0.9
    schedules.log_snr_linear(8, (1e-30, 1e30)) -> log_snr must lie between
    schedules.Schedule([3.0, 3.0, 1.0]) -> log_snr must fall at each step | t = 1 on it is 3, 3
    schedules.Schedule([3.0, 1.0, 1.0 - 1e-7]) -> log_snr must fall at each step | From t = 2
    schedules.Schedule([1.0, 2.0]) -> log_snr must fall at each step | From t = 1 on it is 1, 2
    schedules.Schedule([np.inf, 3.0, 1.0]) -> log_snr must lie between | From t = 1 on it is inf
    schedules.Schedule([3.0, -np.inf, -np.inf]) -> or below at t = T alone | it is -inf, -inf
    schedules.Schedule([1000.0, 3.0]) -> log_snr must lie between -31.9 and 31.9 for float32
    schedules.Schedule([40.0, 3.0]) -> log_snr must lie between | From t = 1 on it is 40, 3
    schedules.Schedule([3.0, -1000.0, -1001.0]) -> log_snr must lie between | From t = 2
    schedules.Schedule([3.0, NAN, 1.0]) -> log_snr must lie between | From t = 2 on it is nan
    schedules.Schedule(8) -> log_snr has shape (); it needs shape (num_steps,)
    schedules.Schedule([]) -> log_snr has shape (0,)
    schedules.Schedule([[1.0], [2.0, 3.0]]) -> log_snr has rows of different lengths
    S.respace(2.0) -> num_steps=2.0 must be a whole number
    dp.respaced(M, 2.0) -> num_steps=2.0 must be a whole number
    dp.respaced(M, "2") -> num_steps='2' must be a whole number
    dp.respaced(M, True) -> num_steps=True must be a whole number
    dp.respaced(M, 0) -> num_steps=0 is not between 1 and the chain's own 8 steps; use at most 8
    dp.respaced(M, 9) -> num_steps=9 is not between 1 and the chain's own 8 steps
    """,
)
refuse(
    TypeError,
    ["schedules.Schedule(@)"],
    """
    "abc" -> log_snr has dtype <U3; it must hold real numbers
    np.ma.array([3.0, 2.0], mask=[0, 1]) -> log_snr is a masked array
    """,
)
TAKE_PAIRS = [
    "noise_to_signal = schedules.log_snr_linear(8, @)",
    "radii = DeadLeaves((8, 8), @)",
]
refuse(
    TypeError,
    TAKE_PAIRS,
    """
    3.0 -> NAME=3.0 must be two numbers, such as (0.01, 100.0)
    (1, 2, 3) -> NAME=(1, 2, 3) must be two numbers
    "12" -> NAME='12' must be two numbers
    ("low", 1.0) -> NAME[0]='low' must be one number
    (0.1, [1.0]) -> NAME[1]=[1.0] must be one number
    """,
)
refuse(
    ValueError,
    TAKE_PAIRS,
    """
    (2.0, 1.0) -> NAME=(2.0, 1.0) must be two numbers, 0 < low < high
    (1.0, 1.0) -> NAME=(1.0, 1.0) must be two numbers, 0 < low < high
    (0.0, 1.0) -> NAME=(0.0, 1.0) must be two numbers, 0 < low < high
    (-1.0, 1.0) -> NAME=(-1.0, 1.0) must be two numbers, 0 < low < high
    (0.1, NAN) -> NAME=(0.1, nan) must be two numbers, 0 < low < high
    (0.1, np.inf) -> NAME=(0.1, inf) must be two numbers, 0 < low < high
    """,
)

# Processes

refuse(
    TypeError,
    [
        "dp.GaussianDiffusion(@)",
        "dp.BernoulliDiffusion(@, 0.2)",
        "dp.CategoricalDiffusion(@, 3)",
        "denoisers.Gaussian(@, [0.0], 1.0)",
        "denoisers.GaussianMixture(@, [1.0], [[0.0]], 1.0)",
    ],
    """
    100 -> schedule=100 must be an AbstractSchedule, such as
    "cosine" -> schedule='cosine' must be an AbstractSchedule, such as
    None -> schedule=None must be an AbstractSchedule
    G -> schedule=<GaussianDiffusion> must be an AbstractSchedule: pass its .schedule
    M -> schedule=<DiffusionModel> must be an AbstractSchedule
    schedules.Learned -> schedule=<class Learned> must be an AbstractSchedule, and not its
    schedules.cosine -> schedule=<function> must be an AbstractSchedule | write cosine(..)
    np.linspace(0, 1, 9) -> schedule=<array of shape (9,)> must be an AbstractSchedule
    """,
)
refuse(
    TypeError,
    ALONE,
    """
    dp.BernoulliDiffusion(R, "x") -> rate has dtype <U1; it must hold real numbers
    dp.BernoulliDiffusion(R, None) -> rate=None must be an array of real numbers
    dp.BernoulliDiffusion(R, PAIR) -> rate is a masked array
    dp.CategoricalDiffusion(3, R)
    -> schedule=3 must be an AbstractSchedule, such as schedules.cosine(
    dp.CategoricalDiffusion(R, "3") -> num_categories has dtype <U1; it must hold real numbers
    dp.CategoricalDiffusion(R, None) -> num_categories=None must be an array of real numbers
    dp.CategoricalDiffusion(R, 3, dp.Absorbing) -> base=<class Absorbing> | write Absorbing(..)
    dp.CategoricalDiffusion(R, 3, "uniform") -> base='uniform' | such as Absorbing, Uniform
    """,
)
refuse(
    ValueError,
    ALONE,
    """
    dp.BernoulliDiffusion(R, True) -> rate must lie strictly between 0 and 1
    dp.BernoulliDiffusion(R, 1e-60) -> rate must lie strictly between 0 and 1: 1 of 1 values (0.0)
    dp.BernoulliDiffusion(R, NAN) -> rate must lie strictly between 0 and 1: 1 of 1 values (nan)
    dp.BernoulliDiffusion(R, np.linspace(-1, 2, 500)) -> 334 of 500 values (-1.0 at [0],
    dp.BernoulliDiffusion(R, [[0.1], [0.2, 0.3]]) -> rate has rows of different lengths
    dp.CategoricalDiffusion(R, 2.5) -> num_categories=2.5 must be a whole number, 2 or more
    dp.CategoricalDiffusion(R, 3.0) -> num_categories=3.0 must be a whole number, 2 or more
    dp.CategoricalDiffusion(R, 1) -> num_categories=1 must be a whole number, 2 or more
    dp.CategoricalDiffusion(R, True) -> num_categories=True must be a whole number
    dp.CategoricalDiffusion(R, NAN) -> num_categories=nan must be a whole number
    dp.CategoricalDiffusion(R, (2, 2.5)) -> must be whole numbers, 2 or more | (2.5 at [1])
    dp.CategoricalDiffusion(R, (2, 1)) -> must be whole numbers, 2 or more | (1 at [1])
    dp.CategoricalDiffusion(R, (2, NAN)) -> must be whole numbers, 2 or more | (nan at [1])
    dp.CategoricalDiffusion(R, ()) -> num_categories is empty
    dp.CategoricalDiffusion(R, [[2], [3, 4]]) -> num_categories has rows of different lengths
    dp.CategoricalDiffusion(S, 3, dp.Absorbing()) -> schedule ends with | reciprocal
    dp.DiffusionModel(dp.BernoulliDiffusion(R, [0.1, 0.2, 0.3]), NET, (2,)) -> process.rate has
    dp.DiffusionModel(dp.CategoricalDiffusion(R, (2, 3, 3)), STATES.network, (2,))
    -> process.num_categories has shape (3,), which does not broadcast against event_shape=(2,)
    """,
)

# Models

refuse(
    TypeError,
    ALONE,
    """
    dp.DiffusionModel(S, NET, (2,)) -> process=<Schedule> | GaussianDiffusion(schedule)
    dp.DiffusionModel(NET, G, (2,)) -> process=<MLP> | process is the first argument
    dp.DiffusionModel(dp.GaussianDiffusion, NET, (2,)) -> process=<class GaussianDiffusion> | write
    dp.DiffusionModel(None, NET, (2,)) -> process=None must be an AbstractProcess, such as
    dp.DiffusionModel("gaussian", NET, (2,)) -> process='gaussian' must be an AbstractProcess
    dp.DiffusionModel(M, NET, (2,)) -> process=<DiffusionModel> | pass its .process
    dp.DiffusionModel(G, None, (2,)) -> network=None must be callable as (x_t, t, context)
    dp.DiffusionModel(G, "mlp", (2,)) -> network='mlp' must be callable as (x_t, t, context)
    dp.DiffusionModel(G, networks.MLP, (2,)) -> network=<class MLP> must be callable as
    dp.DiffusionModel(G, M, (2,)) -> network=<DiffusionModel> is a whole model: pass its .network
    """,
)
refuse(
    TypeError,
    ["dp.DiffusionModel(G, NET, (2,), scaling=@)", "fit(KEY, M, X, scaling=@)"],
    """
    2.0 -> scaling=2.0 must be a Scaling, such as Scaling(loc, scale) or Scaling.from_data(data)
    (0, 1) -> scaling=(0, 1) must be a Scaling, such as Scaling(loc, scale)
    "auto" -> scaling='auto' must be a Scaling
    True -> scaling=True must be a Scaling
    dp.Scaling -> scaling=<class Scaling> must be a Scaling, and not its class: write Scaling(..)
    M -> scaling=<DiffusionModel> must be a Scaling: pass its .scaling
    """,
)
refuse(
    TypeError,
    ["dp.DiffusionModel(G, NET, (2,), prediction=@)"],
    """
    "noise" -> prediction='noise' must be an AbstractPrediction, such as | Noise
    predictions.Noise -> prediction=<class Noise> | write Noise(..)
    predictions.UpperVariance() -> prediction=<UpperVariance> must be an AbstractPrediction
    """,
)
refuse(
    TypeError,
    [f"predictions.{name}(@)" for name in ("Data", "Noise", "Velocity")],
    """
    "upper" -> variance='upper' must be an AbstractVariance, such as FittedVariance
    predictions.UpperVariance -> variance=<class UpperVariance> | write UpperVariance(..)
    predictions.Noise() -> variance=<Noise> must be an AbstractVariance
    1.0 -> variance=1.0 must be an AbstractVariance
    """,
)
refuse(
    TypeError,
    ["predictions.KernelMoments(@)"],
    """
    "code" -> head='code' must be an AbstractMeanHead, such as CodeHead
    predictions.CodeHead -> head=<class CodeHead> | write CodeHead(..)
    """,
)
refuse(
    ValueError,
    [
        "event_shape = dp.DiffusionModel(G, NET, @)",
        "context_shape = dp.DiffusionModel(G, NET, (2,), context_shape=@)",
        "event_shape = mlp(event_shape=@)",
        "output_shape = mlp(output_shape=@)",
        "context_shape = mlp(context_shape=@)",
        "event_shape = rbf(event_shape=@)",
        "output_shape = rbf(output_shape=@)",
        "event_shape = sigmoid_mlp(event_shape=@)",
        "output_shape = sigmoid_mlp(output_shape=@)",
        "event_shape = unet(event_shape=@)",
        "output_shape = unet(output_shape=@)",
        "context_shape = unet(context_shape=@)",
        "channels = unet(channels=@)",
        "event_shape = unet().resized(@)",
        "event_shape = multi_scale(event_shape=@)",
        "output_shape = multi_scale(output_shape=@)",
        "context_shape = networks.OptionalContext(NET, @)",
        "event_shape = bits_per_dim(BOUND, @)",
    ],
    """
    8 -> NAME=8 must be a tuple of positive integers, such as (8,)
    [8] -> NAME=[8] must be a tuple of positive integers
    (8.0,) -> NAME=(8.0,) must be a tuple of positive integers
    "8" -> NAME='8' must be a tuple of positive integers
    (True,) -> NAME=(True,) must be a tuple of positive integers
    (0,) -> NAME=(0,) must be a tuple of positive integers
    (8, -1) -> NAME=(8, -1) must be a tuple of positive integers
    X -> NAME=<array of shape (40, 2)> must be a tuple of positive integers
    """,
)
refuse(
    ValueError,
    ["dp.DiffusionModel(C, @, (4, 4))"],
    """
    mlp(event_shape=(4, 4), output_shape=(4, 4, 3)) -> without num_categories | num_categories=3
    rbf(output_shape=(4, 4, 3)) -> without num_categories | num_categories=3
    sigmoid_mlp(output_shape=(4, 4, 3)) -> without num_categories | num_categories=3
    unet(output_shape=(4, 4, 3)) -> without num_categories | num_categories=3
    networks.Rematerialised(networks.MixedPrecision(unet(output_shape=(4, 4, 3))))
    -> network was made without num_categories | num_categories=3
    networks.OptionalContext(unet(output_shape=(4, 4, 3), context_shape=(2,)), (1,))
    -> network was made without num_categories | num_categories=3
    unet(output_shape=(4, 4, 3), num_categories=2) -> with num_categories=2 | num_categories=3
    """,
)
refuse(
    ValueError,
    ALONE,
    """
    dp.DiffusionModel(G, NET, (3,)) -> network could not be called | event_shape
    dp.DiffusionModel(G, NET, None) -> event_shape=None must be a tuple of positive integers
    dp.DiffusionModel(G, NET, (2,), scaling=dp.Scaling(np.zeros(3), 1.0)) -> scaling.loc has shape
    fit(KEY, M, X, scaling=dp.Scaling(0.0, np.ones(3))) -> scaling.scale has shape (3,)
    dp.DiffusionModel(B, NET, (2,), scaling=dp.Scaling()) -> scaling was given | leave it out
    fit(KEY, BITS, X > 0, scaling=dp.Scaling()) -> scaling was given | leave it out
    dp.DiffusionModel(dp.CategoricalDiffusion(R, 3, dp.Absorbing()), STATES.network, (2,))
    -> with num_categories=3, but the chain of CategoricalDiffusion has 4 states
    dp.DiffusionModel(G, mlp(num_categories=3), (2,)) -> with num_categories=3 | make it without
    dp.DiffusionModel(G, denoisers.Gaussian(schedules.linear(8), np.zeros(2), 1.0), (2,))
    -> network is denoisers.Gaussian for another schedule than the process's | process.schedule
    dp.DiffusionModel(G, denoisers.Gaussian(schedules.cosine(9), np.zeros(2), 1.0), (2,))
    -> another schedule than the process's
    M.denoise(jnp.zeros(3), 1) -> x_t has shape (3,); it must end in (2,)
    M.denoise(1, jnp.zeros(2)) -> t=<array of shape (2,)> must be a whole number
    M.denoise(jnp.zeros(2), 1, jnp.zeros(1)) -> context was given, but the model has no
    dp.guided(M, 1.0) -> guided requires a network with an optional context | OptionalContext
    dp.clipped(BITS, 0.0, 1.0) -> clipped is for real data
    dp.clipped(M, 1.0, 0.0) -> low=1.0 must be less than high=0.0
    dp.clipped(M, NAN, 0.0) -> low=nan must be less than high=0.0
    dp.clipped(M, np.zeros(2), np.zeros(2))
    -> low=<array of shape (2,)> must be less than high=<array
    dp.clipped(M, np.zeros(3), 1.0) -> low has shape (3,) | event_shape=(2,)
    """,
)
refuse(TypeError, ["dp.clipped(M, @, 1.0)"], '"a" -> low has dtype <U1; it must hold real numbers')
refuse(
    ValueError,
    [
        "M.denoise(jnp.zeros(2), @)",
        "M.estimate(jnp.zeros(2), @)",
        "M.reverse_kernel(jnp.zeros(2), @)",
    ],
    """
    0 -> t=0 must be a whole number, 1 or more
    -1 -> t=-1 must be a whole number, 1 or more
    9 -> t=9 is beyond the last step of the chain, 8
    np.int64(9) -> t=9 is beyond the last step of the chain, 8
    1.5 -> t=1.5 must be a whole number, 1 or more
    2.0 -> t=2.0 must be a whole number, 1 or more
    "1" -> t='1' must be a whole number, 1 or more
    True -> t=True must be a whole number, 1 or more
    None -> t=None must be a whole number, 1 or more
    np.arange(1, 3) -> t=<array of shape (2,)> must be a whole number, 1 or more
    """,
)

# Sizes: of networks, draws, minibatches

refuse(
    ValueError,
    [
        "width = mlp(width=@)",
        "depth = mlp(depth=@)",
        "num_categories = mlp(num_categories=@)",
        "num_classes = mlp(num_classes=@)",
        "fourier_features = mlp(fourier_features=@)",
        "num_units = rbf(num_units=@)",
        "num_steps = rbf(num_steps=@)",
        "depth = sigmoid_mlp(depth=@)",
        "num_blocks = unet(num_blocks=@)",
        "patch = unet(patch=@)",
        "num_heads = unet(num_heads=@)",
        "attention_levels = unet(attention_levels=@)",
        "num_classes = unet(num_classes=@)",
        "num_scales = multi_scale(num_scales=@)",
        "conv_channels = multi_scale(conv_channels=@)",
        "num_bumps = multi_scale(num_bumps=@)",
        "num_steps = dp.sample(KEY, M, num_steps=@)",
        "num_steps = dp.sample_path(KEY, M, num_steps=@)",
        "num_steps = dp.sample(KEY, M, sampler=samplers.DDIM(), num_steps=@)",
        "batch_size = dp.sample(KEY, M, (2,), batch_size=@)",
        "batch_size = dp.elbo(KEY, M, X, batch_size=@)",
        "batch_size = dp.jarzynski(KEY, M, X, num_trajectories=2, batch_size=@)",
        "batch_size = parzen(X, X, X, batch_size=@)",
        "num_trajectories = dp.jarzynski(KEY, M, X, num_trajectories=@)",
        "num_particles = dp.importance_bound(KEY, M, X, num_particles=@)",
        "num = dp.SampledSteps(@)",
        "num_probes = Hutchinson(@)",
        "max_steps = dp.Integrator(max_steps=@)",
        "num_iterations = fit(KEY, M, X, num_iterations=@)",
        "batch_size = fit(KEY, M, X, batch_size=@)",
        "chunk = fit(KEY, M, X, chunk=@)",
        "validation_every = fit(KEY, M, X, validation_every=@)",
        "num_iterations = dp.default_optimizer(@)",
        "every = dp.Checkpoints('run', every=@)",
        "keep = dp.Checkpoints('run', keep=@)",
        "size = InMemory(X).batch(KEY, @)",
        "length = dp.data.heartbeats(@, 1)",
        "columns = dp.plots.events(IMAGES, columns=@)",
    ],
    """
    -1 -> NAME=-1 must be a whole number,
    1.5 -> NAME=1.5 must be a whole number,
    1e3 -> NAME=1000.0 must be a whole number,
    "8" -> NAME='8' must be a whole number,
    True -> NAME=True must be a whole number,
    NAN -> NAME=nan must be a whole number,
    np.array([8]) -> NAME=<array of shape (1,)> must be a whole number,
    """,
)
refuse(
    ValueError,
    [
        "dp.sample(KEY, M, num_steps=@)",
        "dp.sample_path(KEY, M, num_steps=@)",
        "dp.sample(KEY, M, sampler=samplers.DDIM(), num_steps=@)",
    ],
    "0 -> num_steps=0 must be a whole number, 1 or more",
)
refuse(
    ValueError,
    TAKE_PROGRAMS,
    """
    np.zeros((2, 3)) -> NAME has shape (2, 3), which does not end in the model's event_shape=(2,)
    1.0 -> NAME has shape (), which does not end in the model's event_shape=(2,)
    """,
)
refuse(
    ValueError,
    ["dp.sample(KEY, M, @)", "dp.sample_path(KEY, M, @)"],
    """
    5 -> shape=5 must be a tuple of whole numbers, such as (5,)
    [5] -> shape=[5] must be a tuple of whole numbers
    (2.0,) -> shape=(2.0,) must be a tuple of whole numbers
    (-1,) -> shape=(-1,) must be a tuple of whole numbers
    (True,) -> shape=(True,) must be a tuple of whole numbers
    "5" -> shape='5' must be a tuple of whole numbers
    X -> shape=<array of shape (40, 2)> must be a tuple of whole numbers
    None -> shape=None must be a tuple of whole numbers
    """,
)

# Networks

refuse(
    ValueError,
    ["unet(event_shape=(8, 8, 3), channel_axis=@)"],
    """
    "last" -> channel_axis='last' must be an axis of event_shape=(8, 8, 3)
    1.0 -> channel_axis=1.0 must be an axis
    3 -> channel_axis=3 must be an axis
    True -> channel_axis=True must be an axis
    None -> channel_axis=None leaves 3 spatial axes | channel_axis=0 for (3, 32, 32), -1 for
    """,
)
refuse(
    ValueError,
    ALONE,
    """
    mlp(fourier_features=2, fourier_scale=NAN) -> fourier_scale=nan must be more than 0
    mlp(fourier_features=2, fourier_scale=-1) -> fourier_scale=-1 must be more than 0
    mlp(num_classes=3, context_shape=(2,)) -> num_classes=3 means | give one of the two
    unet(num_classes=3, context_shape=(2,)) -> num_classes=3 means | give one of the two
    unet(channels=()) -> channels=() must have one number for each level
    networks.OptionalContext(NET, ()) -> context_shape=() is for labels | num_classes | (1,)
    """,
)
refuse(
    TypeError,
    ALONE,
    """
    mlp(activation="relu") -> activation='relu' must be callable as (x)
    mlp(activation=None) -> activation=None must be callable as (x)
    unet(padding="zeros") -> padding='zeros' | such as Edge, Periodic, Zeros
    unet(padding=networks.padding.Zeros) -> padding=<class Zeros> | write Zeros(..)
    multi_scale(padding=1) -> padding=1 must be an AbstractPadding
    unet(rematerialise="no") -> rematerialise='no' must be True or False
    networks.OptionalContext(None, (1,)) -> network=None must be callable as (x_t, t, context)
    networks.OptionalContext(networks.MLP, (1,)) -> network=<class MLP> must be callable as
    """,
)
refuse(
    TypeError,
    ["networks.MixedPrecision(@)", "networks.Rematerialised(@)"],
    """
    3 -> network=3 must be callable as (x_t, t, context)
    None -> network=None must be callable as
    "mlp" -> network='mlp' must be callable as
    networks.MLP -> network=<class MLP> must be callable as
    """,
)

# Known answers and scalings

refuse(
    TypeError,
    [
        "mean = denoisers.Gaussian(S, @, 1.0)",
        "covariance = denoisers.Gaussian(S, [0.0, 0.0], @)",
        "weights = denoisers.GaussianMixture(S, @, [[0.0], [1.0]], 1.0)",
        "means = denoisers.GaussianMixture(S, [0.5, 0.5], @, 1.0)",
        "states = denoisers.Enumerated(B, @, [1.0])",
        "loc = dp.Scaling(@)",
        "scale = dp.Scaling(0.0, @)",
        "weights = WeightedLoss(@)",
        "bandwidths = parzen(X, X, X, bandwidths=@)",
        "images = Flipped(@)",
        "images = Crops(@, (4, 4))",
        "images = Dequantised(@)",
        "images = dp.data.dequantise(KEY, @)",
        "x = dp.plots.events(@)",
    ],
    """
    "x" -> NAME has dtype <U1; it must hold real numbers
    PAIR -> NAME is a masked array with masked entries
    {"a": 1.0} -> NAME=<dict> must be an array of real numbers
    [1.0, None] -> NAME has dtype object; it must hold real numbers
    """,
)
refuse(
    TypeError,
    ["denoisers.Enumerated(@, [[0, 1]], [1.0])"],
    """
    dp.BernoulliDiffusion -> process=<class BernoulliDiffusion> | not its class
    R -> process=<Schedule> must be an AbstractProcess
    G -> process=<GaussianDiffusion> must be a process of bits or | denoisers.GaussianMixture
    """,
)
refuse(
    ValueError,
    ALONE,
    """
    denoisers.Gaussian(S, [[1.0], [1.0, 2.0]], 1.0) -> mean has rows of different lengths
    denoisers.Gaussian(S, np.full(500, NAN), 1.0) -> mean must be finite, but 500 of 500
    denoisers.Enumerated(B, [[0, 2]], [1.0]) -> states has values outside | (2 at [0, 1])
    denoisers.Enumerated(B, [[0, 0.5]], [1.0]) -> states has values outside | (0.5 at [0, 1])
    denoisers.Enumerated(dp.CategoricalDiffusion(R, (2, 3, 4)), [[0, 1]], [1.0])
    -> num_categories has shape (3,)
    dp.Scaling(0.0, np.zeros(500)) -> scale must not be zero: 500 of 500 values (0.0 at [0],
    dp.Scaling(np.inf) -> loc must be finite, but 1 of 1 values (inf)
    dp.Scaling(0.0, [1.0, NAN]) -> scale must be finite, but 1 of 2 values (nan at [1])
    """,
)

# Samplers and likelihoods

refuse(
    TypeError,
    ["dp.sample(KEY, M, sampler=@)", "dp.sample_path(KEY, M, sampler=@)"],
    """
    samplers.DDIM -> sampler=<class DDIM> must be an AbstractSampler, and not its class: write DDIM(
    "ddim" -> sampler='ddim' must be an AbstractSampler, such as Ancestral
    20 -> sampler=20 must be an AbstractSampler
    None -> sampler=None must be an AbstractSampler
    """,
)
refuse(
    TypeError,
    [
        "samplers.ProbabilityFlow(@)",
        "dp.flow_likelihood(KEY, M, X, integrator=@)",
        "dp.flow_log_density(M, X, integrator=@)",
    ],
    """
    1e-5 -> integrator=1e-05 must be an Integrator
    dp.Integrator -> integrator=<class Integrator> must be an Integrator, and not its class
    diffrax.Tsit5() -> integrator=<Tsit5> must be an Integrator
    """,
)
refuse(
    TypeError,
    ["dp.Integrator(solver=@)"],
    """
    diffrax.Tsit5 -> solver=<class Tsit5> | write Tsit5(..)
    "tsit5" -> solver='tsit5' | that estimates its error, such as diffrax.Tsit5()
    diffrax.Euler() -> solver=<Euler> | that estimates its error, such as diffrax.Tsit5()
    """,
)
refuse(
    TypeError,
    [
        "dp.elbo(KEY, M, X, steps=@)",
        "ELBOLoss(@)",
        "SimpleLoss(@)",
        "WeightedLoss(np.ones(7), @)",
    ],
    """
    3 -> steps=3 must be an AbstractSteps, such as AllSteps, SampledSteps
    "all" -> steps='all' must be an AbstractSteps
    dp.AllSteps -> steps=<class AllSteps> | write AllSteps(..)
    """,
)
refuse(
    TypeError,
    ALONE,
    """
    dp.TwistedSMC(resampling="systematic") -> resampling='systematic' must be callable as (key, wei
    dp.TwistedSMC(twist="tweedie") -> twist='tweedie' must be an AbstractTwist | MomentMatching
    dp.TwistedSMC(twist=dp.twists.Mixed) -> twist=<class Mixed> | write Mixed(..)
    dp.TwistedSMC(chain=dp.chains.ModelChain) -> chain=<class ModelChain> | write ModelChain(..)
    dp.Guidance(twist=dp.TwistedSMC()) -> twist=<TwistedSMC> must be an AbstractTwist
    dp.twists.MomentMatching("tweedie") -> covariance='tweedie' must be an AbstractCovariance
    dp.twists.Mixed(dp.twists.ExpectedLikelihood()) -> real=<ExpectedLikelihood> | MomentMatching
    dp.twists.Perturbation(2.0) -> power=2.0 must be an AbstractPower | LinearPower
    dp.flow_likelihood(KEY, M, X, trace="exact") -> trace='exact' | such as ExactTrace, Hutchinson
    dp.flow_likelihood(KEY, M, X, trace=ExactTrace) -> trace=<class ExactTrace> | write ExactTrace(
    dp.flow_log_density(M, "x") -> x_0 has dtype <U1; it must hold real numbers
    bits_per_dim(RESULT, (2,)) -> estimate=<FitResult> must be an Estimate
    bits_per_dim(-3.0, (2,)) -> estimate=-3.0 must be an Estimate
    """,
)
refuse(
    ValueError,
    ALONE,
    """
    dp.TwistedSMC(num_particles=1e3) -> num_particles=1000.0 must be a whole number
    dp.TwistedSMC(num_particles="10") -> num_particles='10' must be a whole number
    dp.TwistedSMC(ess_threshold=1.5) -> ess_threshold=1.5 must lie between 0 and 1
    samplers.DDIM(eta=2.0) -> eta=2.0 must lie between 0 and 1
    samplers.DDIM(eta=NAN) -> eta=nan must lie between 0 and 1
    dp.sample(KEY, BITS, sampler=samplers.DDIM()) -> sampler=DDIM is for real data | Ancestral()
    dp.Integrator(rtol=-1.0) -> rtol=-1.0 must be more than 0
    dp.Integrator(atol=NAN) -> atol=nan must be more than 0
    dp.flow_likelihood(KEY, BITS, X) -> undefined for discrete data | importance_bound or elbo
    dp.flow_log_density(M, np.zeros(3)) -> x_0 has shape (3,) | event_shape=(2,)
    bits_per_dim(BOUND, (3,)) -> event_shape=(3,) has 3 numbers
    bits_per_dim(BOUND, (2,), level=0) -> level=0 must be more than 0
    parzen(X, X, X, bandwidths=[-1.0]) -> bandwidths=[-1.0] must be a list of positive numbers
    """,
)

# Fits

refuse(
    TypeError,
    ["fit(KEY, M, X, @)"],
    """
    learning_rate=1e-3 -> 'learning_rate': pass optimizer=default_optimizer(num_iterations, learning
    lr=1e-3 -> 'lr': pass optimizer=default_optimizer(num_iterations, learning_rate)
    epochs=3 -> 'epochs': pass num_iterations
    num_epochs=3 -> 'num_epochs': pass num_iterations
    num_steps=3 -> 'num_steps': pass num_iterations
    ema=0.9 -> 'ema': pass ema_decay
    labels=X -> 'labels': pass context
    validation=X -> 'validation': pass validation_data
    progress=False -> 'progress': pass progress_bar
    seed=0 -> 'seed': pass key
    nonsense=0 -> fit has no argument 'nonsense'
    loss="elbo" -> loss='elbo' must be an AbstractLoss, such as ContextDropout, ELBOLoss
    loss=ELBOLoss -> loss=<class ELBOLoss> | write ELBOLoss(..)
    loss=None -> loss=None must be an AbstractLoss
    optimizer=1e-3 -> optimizer=0.001 | such as default_optimizer(num_iterations) or optax.adam
    optimizer="adam" -> optimizer='adam' must be a GradientTransformation of optax
    optimizer=optax.adam -> optimizer=<function> must be a GradientTransformation of optax
    trainable=3 -> trainable=3 must be a pytree of booleans or functions
    trainable="network" -> trainable='network' must be a pytree of booleans or functions
    trainable=NET -> trainable=<MLP> must be a pytree of booleans or functions
    trainable=jax.tree.map(lambda _: 1, M) -> trainable=<DiffusionModel> must be a pytree of boolean
    resume=M -> resume=<DiffusionModel> must be a FitResult, which fit returned
    resume="run" -> resume='run' must be a FitResult
    checkpoints="run" -> checkpoints='run' must be a Checkpoints, made by Checkpoints(folder)
    checkpoints=dp.Checkpoints -> checkpoints=<class Checkpoints> | not its class
    progress_bar="no" -> progress_bar='no' must be True or False
    """,
)
refuse(
    TypeError,
    ["ContextDropout(@)"],
    """
    SimpleLoss -> loss=<class SimpleLoss> | write SimpleLoss(..)
    0.5 -> loss=0.5 must be an AbstractLoss
    """,
)
refuse(
    ValueError,
    ALONE,
    """
    fit(KEY, M, X, ema_decay=1.0) -> ema_decay=1.0 must lie between 0 and 1
    fit(KEY, M, X, ema_decay=NAN) -> ema_decay=nan must lie between 0 and 1
    fit(KEY, M, X, trainable=[True]) -> trainable does not have the structure of model
    fit(KEY, M, X, trainable=False) -> trainable names no array
    fit(KEY, M, X, num_iterations=5, optimizer=dp.default_optimizer(2)) -> decayed to zero | (5)
    dp.default_optimizer(10, -1.0) -> learning_rate=-1.0 must be more than 0
    ContextDropout(rate=1) -> rate=1 must lie between 0 and 1
    WeightedLoss(3.0) -> weights must be a vector of finite numbers
    WeightedLoss([1.0, NAN]) -> weights must be finite, but 1 of 2 values (nan at [1])
    """,
)

# Sources of data

refuse(
    TypeError,
    ALONE,
    """
    InMemory(SwissRoll()) -> data=<SwissRoll> must be an array of real numbers
    Flipped(InMemory) -> images=<class InMemory> must be an array or a source of them
    Dequantised(InMemory) -> images=<class InMemory> must be an array or a source of them
    Crops(InMemory(IMAGES), (4, 4)) -> images=<InMemory> must be an array of real numbers
    Dequantised(IMAGES / 255) -> images has dtype float64 | multiply and round
    Dequantised(SwissRoll()) -> it must draw whole numbers 0..255
    dp.data.dequantise(KEY, IMAGES / 255) -> images has dtype float64 | multiply and round
    dp.data.dequantise(IMAGES, KEY) -> key=<array of shape (5, 8, 8, 3)> must be a typed key
    DeadLeaves((8, 8), (1.0, 2.0), grey=1.0) -> grey=1.0 must be a Distribution | dist.Uniform
    DeadLeaves((8, 8), (1.0, 2.0), grey=dist.Uniform) -> grey=<class Uniform> | not its class
    dp.data.cifar10(3) -> folder=3 must be a path
    """,
)
refuse(
    ValueError,
    ["Flipped(@)", "Flipped(InMemory(@))", "Crops(@, (2, 2))"],
    """
    FIRST -> images has events of shape (3, 8, 8) | channel_axis=-1 for | channel_axis=0 for
    np.zeros((5, 3, 8, 3)) -> images has events of shape (3, 8, 3) | channel_axis=0 for
    np.zeros((5, 8, 8, 16)) -> images has events of shape (8, 8, 16) | channel_axis=-1 for
    np.zeros((5, 8, 8, 8, 3)) -> images has events of shape (8, 8, 8, 3); they need shape (height
    X -> images has events of shape (2,); they need shape (height
    """,
)
refuse(
    ValueError,
    ["Flipped(IMAGES, channel_axis=@)", "Crops(IMAGES, (4, 4), channel_axis=@)"],
    """
    1 -> channel_axis=1 must be the first or the last axis
    "last" -> channel_axis='last' must be the first or the last axis
    True -> channel_axis=True must be the first or the last axis
    -1.0 -> channel_axis=-1.0 must be the first or the last axis
    """,
)
refuse(
    ValueError,
    ["Crops(IMAGES, @)", "DeadLeaves(@, (1.0, 2.0))"],
    """
    4 -> size=4 must be a height and a width, such as (64, 64)
    [4, 4] -> size=[4, 4] must be a height and a width
    (4, 4, 3) -> size=(4, 4, 3) must be a height and a width
    (4.0, 4) -> size=(4.0, 4) must be a tuple of positive integers
    (0, 4) -> size=(0, 4) must be a tuple of positive integers
    (True, 4) -> size=(True, 4) must be a tuple of positive integers
    "44" -> size='44' must be a height and a width
    """,
)
refuse(
    ValueError,
    [
        "dp.data.dequantise(KEY, @)",
        "Dequantised(@)",
        "Dequantised(InMemory(@))",
        "Dequantised(Flipped(@))",
        "Dequantised(Crops(@, (4, 4)))",
    ],
    """
    IMAGES + np.int64(300) -> images must hold 8-bit levels 0..255; | (300 at [0, 0, 0, 0]
    IMAGES.astype(int) - 1 -> images must hold 8-bit levels 0..255; | (-1 at [0, 0, 0, 0]
    """,
)
refuse(
    ValueError,
    ALONE,
    """
    Crops(IMAGES, (9, 4)) -> size=(9, 4) is larger than the images, which are (8, 8)
    Flipped(IMAGES[..., 0], channel_axis=-1) -> channel_axis=-1 must be the first or the last axis
    SwissRoll(NAN) -> noise=nan must be 0 or more
    SwissRoll(-1) -> noise=-1 must be 0 or more
    dp.data.heartbeats(4, 5) -> period=5 must be from 1 to length=4
    """,
)

# Files and pictures

refuse(
    TypeError,
    ALONE,
    """
    dp.save(M, "m.dppl") -> path=<DiffusionModel> must be a path
    dp.save(3, M) -> path=3 must be a path
    dp.load(3) -> path=3 must be a path
    dp.load(None) -> path=None must be a path
    dp.save("m.dppl", RESULT) -> model=<FitResult> | pass its .model
    dp.Checkpoints(3) -> folder=3 must be a path
    dp.plots.history(RESULT) -> history=<FitResult> must be a History: pass its .history
    dp.plots.bound_terms(RESULT) -> bound=<FitResult> must be an Estimate, as elbo returns it
    dp.plots.schedule(G) -> schedules=<GaussianDiffusion> must be an AbstractSchedule
    dp.plots.schedule(schedules.cosine) -> schedules=<function> | write cosine(..)
    dp.plots.schedule([S]) -> a dictionary of them by name
    dp.plots.chain([X]) -> panels=<list> must be a Mapping: a dictionary
    dp.plots.work(RESULT) -> result=<FitResult> must be a PathWork, as jarzynski returns it
    dp.plots.calibration(RESULT) -> result=<FitResult> must be a Calibration, as calibrate returns
    """,
)


@pytest.mark.parametrize("call", REFUSED)
def test_it_is_refused_by_name_with_a_remedy(call: str):
    error, words = REFUSED[call]
    with pytest.raises(Exception) as caught:  # noqa: PT011 (its type is asserted below)
        called(call)
    message = str(caught.value)
    assert type(caught.value) is error, f"{type(caught.value).__name__}: {message}"
    for part in words.split(" | "):
        assert part in message, f"{part!r} is not in: {message}"
    assert len(message) < 500, f"it prints {len(message)} characters"


# What is accepted --------------------------------------------------------------------------------

ACCEPTED: dict[str, str] = {}


def accept(calls: list[str], rows: str) -> None:
    """Each of the rows, an odd value and a plain one with "-> " between, in each of the calls."""
    for row in inspect.cleandoc(rows).replace("\n->", " ->").splitlines():
        odd, plain = row.split(" -> ")
        for call in calls:
            assert call.replace("@", odd) not in ACCEPTED
            ACCEPTED[call.replace("@", odd)] = call.replace("@", plain)


# Old-style keys, wherever a key is taken
accept(
    TAKE_KEYS,
    """
    jax.random.PRNGKey(3) -> jax.random.key(3)
    np.asarray(jax.random.PRNGKey(3)) -> jax.random.key(3)
    """,
)

# Whole numbers of any integer type
accept(
    [
        "schedules.linear(@)",
        "schedules.cosine(@)",
        "schedules.log_snr_linear(@)",
        "schedules.reciprocal(@)",
        "schedules.sohl_dickstein(@)",
        "schedules.Learned(@, 0.1)",
        "S.respace(@)",
        "dp.respaced(M, @)",
        "dp.sample(KEY, M, num_steps=@)",
        "dp.SampledSteps(@)",
        "Hutchinson(@)",
        "dp.Integrator(max_steps=@)",
        "dp.Checkpoints('run', every=@, keep=@)",
        "dp.CategoricalDiffusion(R, @)",
        "dp.CategoricalDiffusion(R, (2, @))",
        "mlp(width=@, depth=@, fourier_features=@)",
        "mlp(num_classes=@, num_categories=@)",
        "unet(event_shape=(@, @), num_blocks=@, num_heads=@)",
        "rbf(num_units=@)",
        "sigmoid_mlp(event_shape=(@,), output_shape=(@, 2))",
        "InMemory(X).batch(KEY, @)",
        "dp.data.heartbeats(8, @)",
        "bits_per_dim(dp.elbo(KEY, WIDE, np.ones((3, 4))), (@,))",
        "M.denoise(jnp.ones(2), @)",
        "M.reverse_kernel(jnp.ones(2), @).log_prob(jnp.zeros(2))",
    ],
    """
    np.int64(4) -> 4
    np.uint8(4) -> 4
    np.array(4) -> 4
    jnp.array(4) -> 4
    """,
)
accept(
    [
        "unet(channels=(@, @), patch=1)",
        "multi_scale(num_bumps=@, conv_depth=@)",
        "dp.sample(KEY, M, (@, 2), batch_size=@)",
        "dp.sample(KEY, M, (2,), sampler=samplers.DDIM(), num_steps=@)",
        "dp.elbo(KEY, M, X, batch_size=@)",
        "dp.importance_bound(KEY, M, X[:2], num_particles=@, batch_size=@)",
        "dp.jarzynski(KEY, M, X[:2], num_trajectories=@)",
        "fit(KEY, M, X, num_iterations=@, batch_size=@, chunk=@).model",
        "fit(KEY, M, X, num_iterations=8, validation_data=X, validation_every=@).history",
        "Crops(IMAGES, (@, @)).batch(KEY, @)",
    ],
    "np.int64(4) -> 4",
)
accept(["M.reverse_kernel(jnp.ones(2), @).log_prob(jnp.zeros(2))"], "np.int64(1) -> 1")
accept(["M.reverse_kernel(jnp.ones(2), @).log_prob(jnp.zeros(2))"], "jnp.array(1) -> 1")
accept(["networks.UNet((4, 4, 2), (4,), key=KEY, channel_axis=@)"], "np.int64(-1) -> -1")
accept(["Flipped(IMAGES, channel_axis=@).batch(KEY, 5)"], "np.int64(-1) -> None")
accept(["Crops(IMAGES, (4, 5), channel_axis=@).batch(KEY, 5)"], "-1 -> None")

# Numbers of any real type
accept(
    [
        "schedules.cosine(8, offset=@)",
        "schedules.linear(8, beta_start=@, beta_end=0.9)",
        "schedules.log_snr_linear(8, (@, 3.0))",
        "schedules.log_snr_linear(8, [@, 3.0])",
        "schedules.log_snr_linear(8, np.array([@, 3.0]))",
        "samplers.DDIM(eta=@)",
        "dp.Integrator(rtol=@, atol=@)",
        "ContextDropout(rate=@)",
        "dp.BernoulliDiffusion(R, @)",
        "dp.Scaling(@, @)",
        "SwissRoll(@)",
        "fit(KEY, M, X, ema_decay=@).model",
    ],
    """
    np.float64(0.5) -> 0.5
    np.float32(0.5) -> 0.5
    np.array(0.5) -> 0.5
    jnp.array(0.5) -> 0.5
    """,
)
accept(["dp.Scaling(@, 2)", "SwissRoll(@)", "samplers.DDIM(eta=@)"], "1 -> 1.0")

# Data as lists, tables, series and arrays of any precision
accept(
    ["dp.elbo(KEY, M, @)", "dp.Scaling.from_data(@)"],
    """
    X.tolist() -> X
    list(X) -> X
    tuple(map(tuple, X)) -> X
    pd.DataFrame(X) -> X
    pd.DataFrame(X, columns=["a", "b"]).astype("Float64") -> X
    np.ma.array(X) -> X
    jnp.asarray(X) -> X.astype(np.float32)
    X.astype(object) -> X
    """,
)
accept(
    [
        "dp.importance_bound(KEY, M, @, num_particles=2)",
        "dp.flow_likelihood(KEY, M, @)",
        "dp.entropy_bounds(KEY, M, @)",
        "fit(KEY, M, @).model",
        "fit(KEY, M, InMemory(@)).model",
        "fit(KEY, M, X, validation_data=@).history",
    ],
    "pd.DataFrame(X) -> X",
)
accept(
    ["dp.elbo(KEY, BITS, @)", "fit(KEY, BITS, InMemory(@)).model"],
    """
    X > 0 -> (X > 0).astype(int)
    (X > 0).astype(float) -> (X > 0).astype(int)
    (X > 0).astype(np.uint8) -> (X > 0).astype(int)
    pd.DataFrame({"a": X[:, 0] > 0, "b": (X[:, 1] > 0).astype(int)}) -> (X > 0).astype(int)
    pd.DataFrame(X > 0).astype("Int64") -> (X > 0).astype(int)
    """,
)
accept(
    ["dp.elbo(KEY, M, @)"],
    "pd.DataFrame({'a': X[:, 0], 'b': X[:, 1] > 0}) -> np.c_[X[:, 0], X[:, 1] > 0]",
)
accept(["dp.elbo(KEY, WIDE, @)"], "pd.DataFrame(np.ones((3, 4))) -> np.ones((3, 4))")
accept(["dp.elbo(KEY, M, @)"], "X.astype(np.float16) -> X.astype(np.float16).astype(float)")
accept(
    ["dp.elbo(KEY, M, @)"],
    "np.array([[1.6e9, -3], [2, 1]], np.int64) -> [[1.6e9, -3.0], [2.0, 1.0]]",
)
accept(["fit(KEY, M, X, @).model"], "trainable=True -> trainable=None")
accept(["dp.flow_log_density(TOLD, X[:2], @)"], "[[1.0], [2.0]] -> jnp.array([[1.0], [2.0]])")
accept(
    [
        "dp.sample(KEY, TOLD, (2,), context=@)",
        "dp.elbo(KEY, TOLD, X[:2], context=@)",
        "TOLD(@).sample(KEY)",
    ],
    """
    [[1.0], [2.0]] -> jnp.array([[1.0], [2.0]])
    [[1], [2]] -> jnp.array([[1.0], [2.0]])
    pd.DataFrame({"a": [1, 2]}) -> jnp.array([[1.0], [2.0]])
    np.array([[1], [2]], np.uint8) -> jnp.array([[1.0], [2.0]])
    np.ma.array([[1.0], [2.0]]) -> jnp.array([[1.0], [2.0]])
    """,
)
accept(
    ["schedules.Schedule(@)"],
    """
    [3, 1, -2] -> np.array([3.0, 1.0, -2.0])
    pd.Series([3.0, 1.0, -2.0]) -> np.array([3.0, 1.0, -2.0])
    jnp.array([3.0, 1.0, -2.0]) -> np.array([3.0, 1.0, -2.0])
    """,
)
accept(
    ["seeded(M.forward, @)", "seeded(M.reverse, None, @)"],
    """
    X[:2].tolist() -> jnp.asarray(X[:2], dtype=float)
    X[0] -> jnp.asarray(X[0], dtype=float)
    """,
)
accept(["seeded(BITS.forward, @)"], "[True, False] -> jnp.array([1, 0])")
accept(["dp.CategoricalDiffusion(R, @)"], "np.array([2, 3, 5]) -> (2, 3, 5)")
accept(["dp.CategoricalDiffusion(R, @)"], "jnp.array([2, 3, 5]) -> [2, 3, 5]")
accept(["dp.CategoricalDiffusion(R, @)"], "pd.Series([2, 3, 5]) -> (2, 3, 5)")
accept(["dp.data.dequantise(KEY, @)"], "np.ones((3, 2), int).tolist() -> np.ones((3, 2), np.uint8)")
accept(
    ["Dequantised(@).batch(KEY, 5)"],
    "InMemory(np.full((3, 2), 255, np.int16)) -> np.full((3, 2), 255, np.uint8)",
)
accept(["Flipped(@, channel_axis=0).batch(KEY, 5)[0].shape"], "FIRST -> InMemory(FIRST)")


@pytest.mark.parametrize("call", ACCEPTED)
def test_it_is_accepted_and_right(call: str):
    odd, plain = called(call), called(ACCEPTED[call])
    assert jax.tree.structure(odd) == jax.tree.structure(plain)
    for mine, theirs in zip(jax.tree.leaves(odd), jax.tree.leaves(plain), strict=True):
        assert np.asarray(mine).dtype == np.asarray(theirs).dtype
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


# In a trace --------------------------------------------------------------------------------------

C_1, X_2 = jnp.array([[0.5], [-1.0]]), jnp.asarray(X[:2], dtype=float)

# What takes contexts `c`, shape (2, 1), and data `x`, shape (2, 2), whose values nobody knows
TRACED = [
    "dp.sample(KEY, TOLD, (3,), context=c)",
    "dp.sample_path(KEY, TOLD, (3,), context=c)",
    "dp.sample(KEY, TOLD, (3,), context=c, sampler=samplers.DDIM(), num_steps=4)",
    "dp.elbo(KEY, TOLD, x, context=c).value",
    "dp.elbo(KEY, M, x, steps=dp.SampledSteps(2)).per_example",
    "dp.elbo(KEY, BITS, x > 0).per_example",
    "dp.elbo(KEY, STATES, jnp.where(x > 0, 2, 0)).per_example",
    "dp.importance_bound(KEY, TOLD, x, num_particles=3, context=c).value",
    "dp.jarzynski(KEY, BITS, x > 0, num_trajectories=3).work",
    "dp.entropy_bounds(KEY, M, x).upper",
    "TOLD(c).sample(KEY, (3,))",
    "TOLD.denoise(x, 3, c)",
    "dp.clipped(TOLD, c[0], 9.0).denoise(x, 3, c)",
    "dp.Scaling(x[0], 1.0).to_model(x)",
    "dp.DiffusionModel(dp.GaussianDiffusion(S), NET, (2,)).denoise(x, 3)",
    "dp.respaced(M, 4).denoise(x, 3)",
    "denoisers.Gaussian(S, [0.5, -1.0], 0.3)(x[0], 3, None)",
    "dp.DiffusionModel(G, denoisers.Gaussian(S, [0.0, 1.0], 1.0), (2,)).denoise(x, 3)",
    "dp.data.dequantise(KEY, jnp.round(9 * x**2).astype(int))",
    "Dequantised(InMemory(jnp.round(9 * x**2).astype(int))).batch(KEY, 3)[0]",
    "Dequantised(Flipped(IMAGES)).batch(KEY, 3)[0] + x[0, 0]",
    "Flipped(Crops(IMAGES, (4, 5)), channel_axis=-1).batch(KEY, 3)[0] + x[0, 0]",
    "InMemory(x, context=c).batch(KEY, 3)[0]",
    "SwissRoll(0.1).batch(KEY, 3)[0] + x[0]",
    "dp.BernoulliDiffusion(R, jax.nn.sigmoid(x[0])).base((2,)).probs",
    "schedules.Schedule(-jnp.cumsum(jnp.exp(x.reshape(-1)))).alpha_bar()",
]
TRACED_FLOWS = [
    "dp.flow_likelihood(KEY, M, x, trace=ExactTrace()).per_example",
    "dp.flow_log_density(TOLD, x, c)",
]


@pytest.mark.parametrize("call", [*TRACED, *slow(*TRACED_FLOWS)])
def test_values_need_not_be_known(call: str):
    def function(c: Any, x: Any) -> Any:
        return eval(call, {**globals(), "c": c, "x": x})

    plain = [np.asarray(function(C_1, x)) for x in (X_2, 0.5 * X_2)]
    both = jax.jit(jax.vmap(function, (None, 0)))(C_1, jnp.stack([X_2, 0.5 * X_2]))
    np.testing.assert_allclose(both, plain, rtol=2e-4, atol=1e-5)


def test_levels_in_a_trace_that_are_none_become_nan():
    levels = jnp.array([0, 255, 256, -1])
    x = jax.jit(lambda levels: dp.data.dequantise(KEY, levels))(levels)
    np.testing.assert_array_equal(np.isnan(x), [False, False, True, True])
    assert 255 <= x[1] < 256


def test_shapes_are_known_in_a_trace_and_checked():
    for call, words in (
        (lambda x: dp.elbo(KEY, M, x[:, :1]), r"x_0 has shape \(2, 1\)"),
        (lambda x: dp.elbo(KEY, TOLD, x, context=x), r"context has shape \(2, 2\)"),
        (lambda x: dp.sample(KEY, TOLD, context=x), r"context has shape \(2, 2\)"),
        (lambda x: M.denoise(x[:, :1], 1), r"x_t has shape \(2, 1\)"),
    ):
        with pytest.raises(ValueError, match=words):
            jax.jit(call)(X_2)


def test_gradients_reach_contexts_and_data():
    def bound(x: Any, c: Any) -> Any:
        return dp.elbo(KEY, TOLD, x, context=c, steps=dp.SampledSteps(8)).value

    slopes = jax.jit(jax.grad(bound, (0, 1)))(X_2, C_1)
    step = 1e-2 * jnp.eye(2)[0]
    numeric = (bound(X_2 + step, C_1) - bound(X_2 - step, C_1)) / 2e-2
    np.testing.assert_allclose(jnp.sum(slopes[0][:, 0]), numeric, rtol=2e-2)
    assert np.all(np.isfinite(slopes[1]))


def test_sizes_in_a_trace_are_refused_by_name():
    with pytest.raises(ValueError, match="batch_size=<array of shape .*> must be a whole number"):
        jax.jit(lambda n: dp.elbo(KEY, M, X, batch_size=n).value)(4)


def test_old_keys_may_be_traced():
    draw = jax.jit(lambda key: dp.sample(key, M, (3,)))
    truth = dp.sample(jax.random.key(1), M, (3,))
    np.testing.assert_allclose(draw(jax.random.PRNGKey(1)), truth, rtol=1e-5)
    keys = jax.random.split(jax.random.PRNGKey(1), 2)
    both = jax.vmap(lambda key: dp.sample(key, M, (3,)))(keys)
    np.testing.assert_allclose(both[1], dp.sample(keys[1], M, (3,)), rtol=1e-5)


@pytest.mark.slow
def test_old_keys_run_posteriors_and_calibrations():
    def program(y: Any = None) -> None:
        x = numpyro.sample("x", M())
        numpyro.sample("y", dist.Normal(x[0], 0.5), obs=y)

    method, draws = dp.TwistedSMC(num_particles=20), []
    for key in (jax.random.PRNGKey(2), jax.random.key(2)):
        posterior = dp.Posterior(program, method, num_chains=2, progress_bar=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # so few particles may collapse
            posterior.run(key, y=0.3)
        draws.append(posterior.get_samples()["x"])
    np.testing.assert_array_equal(*draws)
    with pytest.raises(TypeError, match="key=0 must be a typed key"):
        posterior.run(0, y=0.3)
    with pytest.raises(TypeError, match="key=0 must be a typed key"):
        dp.calibrate(0, program, method, observed="y", num_simulations=2, num_samples=5)

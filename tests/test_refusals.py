"""Programs and data that are refused before any work, by the name of the site."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan

import diffppl as dp
from diffppl.conditioning.validation import bind

from .test_programs import FOLLOWER, M1, M2, model

BITS = dp.DiffusionModel(
    dp.BernoulliDiffusion(dp.schedules.reciprocal(5)),
    dp.networks.MLP((3,), width=4, depth=1, key=jax.random.key(0)),
    (3,),
)


def of(draw, noise=lambda x: dist.Normal(x[0], 0.5)):
    """A program whose site "x" is drawn by `draw`."""

    def program(y=None):
        x = draw()
        numpyro.sample("y", noise(x), obs=y)

    return program


def x():
    return numpyro.sample("x", M1())


def masked_prior():
    with handlers.mask(mask=np.array(True)):
        return x()


def scaled_prior():
    with handlers.scale(scale=0.5):
        return x()


def padded_plate():
    with numpyro.plate("n", 2), handlers.mask(mask=np.array([True, False])):
        return numpyro.sample("x", M1())[0]


def substituted():
    return handlers.substitute(x, {"x": jnp.zeros(1)})()


def scanned():
    def step(carry, _):
        return carry + numpyro.sample("x", M1()), None

    return scan(step, jnp.zeros(1), None, length=3)[0]


def discrete():
    return x() + numpyro.sample("k", dist.Bernoulli(0.3))


def improper():
    return x() + numpyro.sample("m", dist.ImproperUniform(dist.constraints.real, (), ()))


def parameter():
    return x() + numpyro.param("shift", 1.0)


def own_randomness():
    return x() + jax.random.normal(numpyro.prng_key())


def subsampled():
    with numpyro.plate("rows", 100, subsample_size=10):
        return x()


def process_from_latent():
    rate = numpyro.sample("rate", dist.Beta(2.0, 2.0))
    process = dp.BernoulliDiffusion(dp.schedules.reciprocal(5), rate=rate)
    return numpyro.sample("x", dp.DiffusionModel(process, BITS.network, (3,))())


def python_branch():
    value = x()
    return value if value[0] > 0 else -value


def moving_scaling():
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.1))
    return numpyro.sample("x", model(scaling=dp.Scaling(0.0, scale))())


def transformed():
    return numpyro.sample("x", dist.TransformedDistribution(M1(), dist.transforms.ExpTransform()))


def mixture():
    parts = [M1(), M1()]
    return numpyro.sample("x", dist.MixtureGeneral(dist.Categorical(jnp.ones(2) / 2), parts))


def shown(x):
    return dist.Delta(x, event_dim=1)


PROGRAMS: dict[str, tuple[Any, Any, type, str]] = {
    "mask on the prior": (of(masked_prior), 1.0, ValueError, "site 'x' .* under a mask"),
    "scale on the prior": (of(scaled_prior), 1.0, ValueError, "site 'x' .* under handlers.scale"),
    "padded plate": (of(padded_plate), 1.0, ValueError, "site 'x' .* mask the observations alone"),
    "transformed": (of(transformed), 1.0, ValueError, "site 'x' .* inside TransformedDistrib"),
    "mixture of models": (of(mixture), 1.0, ValueError, "site 'x' .* inside MixtureGeneral"),
    "substituted": (of(substituted), 1.0, ValueError, "site 'x' .* handlers.substitute sets"),
    "scan": (of(scanned), 1.0, ValueError, "site 'x' .* inside numpyro's scan or cond"),
    "discrete latent": (of(discrete), 1.0, ValueError, "site 'k' is a discrete latent"),
    "improper latent": (of(improper), 1.0, ValueError, "site 'm' has an improper prior"),
    "parameter": (of(parameter), 1.0, ValueError, "numpyro.param site 'shift'"),
    "own randomness": (of(own_randomness), 1.0, ValueError, r"numpyro.prng_key\(\)"),
    "subsample": (of(subsampled), 1.0, ValueError, "plate 'rows' takes a subsample of 10 of 100"),
    "process": (of(process_from_latent), 1.0, ValueError, "process .* site 'x' .* site 'rate'"),
    "python branch": (of(python_branch), 1.0, TypeError, "value of a latent site in Python"),
    "noise of zero": (
        of(x, lambda x: dist.Normal(x[0], 0.0)),
        1.0,
        ValueError,
        r"invalid scale parameter.*Delta\(x\[rows\]\)",
    ),
    "noise of zero, as an array": (
        of(x, lambda x: dist.Normal(x[0], jnp.zeros(()) * x[0] ** 0)),
        1.0,
        ValueError,
        r"site 'y' has noise of scale 0.*Delta\(x\[rows\]\)",
    ),
    "delta of a function": (
        of(x, lambda x: shown(x + 0.5)),
        np.ones(1),
        ValueError,
        "site 'y' is an observed Delta of something other than entries",
    ),
    "delta under a latent scaling": (
        of(moving_scaling, shown),
        np.ones(1),
        ValueError,
        "site 'y' observes entries of 'x' without noise, but the scaling",
    ),
    "delta of a latent": (
        of(lambda: numpyro.sample("u", dist.Normal()) + x(), shown),
        np.ones(1),
        ValueError,
        "site 'y' is an observed Delta of something that depends on the latent site 'u'",
    ),
    "half a bit": (
        of(lambda: numpyro.sample("x", BITS()), lambda x: dist.Delta(x[0])),
        0.7,
        ValueError,
        "site 'x' has the value 0.7, which is not a state",
    ),
    "a bit of two": (
        of(lambda: numpyro.sample("x", BITS()), lambda x: dist.Delta(x[0])),
        2,
        ValueError,
        "site 'x' has the value 2, which is not a state",
    ),
    "nothing observed": (of(x), None, ValueError, "no observed site"),
    "no diffusion": (
        of(lambda: numpyro.sample("x", dist.Normal().expand([1]))),
        1.0,
        ValueError,
        "no diffusion site",
    ),
    "observed diffusion": (
        of(lambda: numpyro.sample("x", M1(), obs=jnp.zeros(1))),
        1.0,
        ValueError,
        "site 'x' is a diffusion model that is itself observed",
    ),
    "obs_mask at the diffusion site": (
        of(lambda: numpyro.sample("x", M1(), obs=jnp.zeros(1), obs_mask=np.array(True))),
        1.0,
        ValueError,
        r"site 'x_observed' .*dist.Delta\(x\[rows\]\)",
    ),
}

normal = of(x)
counted = of(x, lambda x: dist.Poisson(jnp.exp(x[0])))
labelled = of(x, lambda x: dist.Categorical(logits=jnp.stack([x[0], 0.0, -x[0]])))
plated = of(x, lambda x: dist.Normal(jnp.broadcast_to(x[0], (3,)), 1.0))

DATA: dict[str, tuple[Any, Any, type, str]] = {
    "nan": (normal, np.nan, ValueError, "site 'y' has 1 value that is NaN; .*obs_mask="),
    "some nan": (plated, np.array([0, np.nan, np.nan]), ValueError, "has 2 values that are NaN"),
    "infinite": (normal, -np.inf, ValueError, "site 'y' has 1 value that is infinite"),
    "a count of -1": (counted, -1, ValueError, "site 'y' has 1 value that is outside the support"),
    "a count of 1.5": (counted, 1.5, ValueError, "site 'y' .* outside the support"),
    "a beta of 2": (
        of(x, lambda x: dist.Beta(jnp.exp(x[0]), 1.0)),
        2.0,
        ValueError,
        "site 'y' .* outside the support",
    ),
    "labels from 1": (labelled, np.array([1, 2, 3]), ValueError, "'y' has 1 value .* outside"),
    "columns against rows": (
        plated,
        np.zeros((3, 1)),
        ValueError,
        r"site 'y' has shape \(3, 1\) .* shape \(3,\), which would broadcast to \(3, 3\)",
    ),
    "another length": (
        plated,
        np.zeros(4),
        ValueError,
        r"'y' has shape \(4,\) .* do not broadcast",
    ),
    "a word": (normal, "0.3", TypeError, "the observation at site 'y' has dtype <U3"),
    "ragged": (normal, [[1.0], [2.0, 3.0]], TypeError, "the observation at site 'y' is not"),
    "a masked array": (
        plated,
        np.ma.array(np.zeros(3), mask=[0, 1, 0]),
        TypeError,
        "argument 'y' of the program is a masked array",
    ),
    "integers too large": (
        plated,
        np.array([3_000_000_000, 1, 2]),
        ValueError,
        "argument 'y' of the program has integers from 1 to 3000000000",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_refused(name: str) -> None:
    program, y, error, message = PROGRAMS[name]
    with pytest.raises(error, match=message):
        dp.Posterior(program, progress_bar=False).run(jax.random.key(0), y=y)


@pytest.mark.parametrize("name", DATA)
def test_data_are_refused(name: str) -> None:
    program, y, error, message = DATA[name]
    with pytest.raises(error, match=message):
        dp.Posterior(program, progress_bar=False).run(jax.random.key(0), y=y)


def test_contradicting_observations_name_both_sites() -> None:
    def program(y, z):
        x = numpyro.sample("x", M2())
        numpyro.sample("first", dist.Delta(x[0]), obs=y)
        numpyro.sample("both", dist.Delta(x, event_dim=1), obs=z)

    bind(program, (0.5, np.array([0.5, 1.0])), {})
    with pytest.raises(ValueError, match=r"sites 'both' and 'first'|sites 'first' and 'both'"):
        bind(program, (0.4, np.array([0.5, 1.0])), {})


def test_covariates_with_nan_name_their_site() -> None:
    def program(features, y):
        x = numpyro.sample("x", M1())
        numpyro.sample("fine", dist.Normal(x[0], 1.0), obs=0.3)
        numpyro.sample("y", dist.Normal(features @ jnp.ones(2) * x[0], 1.0), obs=y)

    with pytest.raises(ValueError, match="log-density of site 'y' is NaN at every draw"):
        bind(program, (np.array([[1.0, np.nan]]), np.ones(1)), {})


@dataclasses.dataclass
class Survey:
    y: np.ndarray
    kind: str


def test_objects_as_data_are_passed_as_they_are() -> None:
    def program(survey):
        x = numpyro.sample("x", M1())
        if survey.kind == "normal":
            numpyro.sample("y", dist.Normal(x[0], 1.0), obs=survey.y)

    bound = bind(program, (Survey(np.array([1.0, 2.0]), "normal"),), {})
    evaluation = bound.evaluate({"x": jnp.zeros(1)}, {})
    np.testing.assert_allclose(evaluation.log_densities["y"].sum(), -2.5 - np.log(2 * np.pi))


# Methods that cannot ----------------------------------------------------------------------------


def chain(y=None):
    x1 = numpyro.sample("x1", M1())
    x2 = numpyro.sample("x2", FOLLOWER(x1))
    numpyro.sample("y", dist.Normal(x2[0], 0.5), obs=y)


def mixed(y=None):
    x = numpyro.sample("x", M1())
    b = numpyro.sample("b", BITS())
    numpyro.sample("y", dist.Normal(x[0] + b[0], 0.5), obs=y)


@pytest.mark.parametrize(
    ("program", "method", "message"),
    [
        (chain, dp.SplitGibbs(), r"SplitGibbs\(\) .*site 'x2' depends on another"),
        (chain, dp.TwistedSMC(10, twist=dp.twists.Quadrature()), "site 'x2' depends on another"),
        (chain, dp.TwistedSMC(10, twist=dp.twists.Perturbation()), "site 'x2' depends on another"),
        (mixed, dp.TwistedSMC(10, twist=dp.twists.MomentMatching()), r"'b'.* twist=Mixed\(\)"),
        (mixed, dp.TwistedSMC(10, twist=dp.twists.ExpectedLikelihood()), r"'x'.* twist=Mixed"),
        (mixed, dp.TwistedSMC(10, twist=dp.twists.Perturbation()), r"use twist=Mixed\(\)"),
        (mixed, dp.TwistedSMC(10, chain=dp.chains.CovarianceMatched()), "'b' has BernoulliDiff"),
    ],
)
def test_a_method_that_cannot(program, method, message: str) -> None:
    posterior = dp.Posterior(program, method, num_samples=10, progress_bar=False)
    with pytest.raises(ValueError, match=message):
        posterior.run(jax.random.key(0), y=1.0)


def test_particle_gibbs_refuses_what_it_would_get_wrong() -> None:
    from numpyro.infer import MCMC, NUTS, Gibbs

    def latent_context(y=None):
        mu = numpyro.sample("mu", dist.Normal())
        x = numpyro.sample("x", FOLLOWER(mu[None]))
        numpyro.sample("y", dist.Normal(x[0], 0.5), obs=y)

    settings = {"num_warmup": 1, "num_samples": 1, "progress_bar": False}
    with pytest.raises(ValueError, match="site 'x2' depends on another one; use TwistedSMC"):
        MCMC(dp.ParticleGibbs(chain), **settings).run(jax.random.key(0), y=1.0)
    kernel = dp.ParticleGibbs(latent_context)
    blocks = Gibbs([(kernel, ["x"]), (NUTS(kernel.model), None)])
    with pytest.raises(ValueError, match="context of site 'x' depends on the latent site 'mu'"):
        MCMC(blocks, **settings).run(jax.random.key(0), y=1.0)

"""What a posterior compiles holds no two calls of LAPACK that may run at once: see `hlo`.

The cases run in a process of their own, in which XLA writes out every program that it compiles.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from . import hlo
from .fast_compilation import FLAGS

pytestmark = pytest.mark.slow

START = """
import warnings
import jax, jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist
import diffppl as dp

S = dp.schedules.log_snr_linear(4, noise_to_signal=(0.05, 60.0))
MODEL = dp.DiffusionModel(
    dp.GaussianDiffusion(S), dp.denoisers.Gaussian(S, np.zeros(6), np.ones(6)), (6,)
)
NETWORK = dp.networks.MLP((3,), key=jax.random.key(0))
BITS = dp.DiffusionModel(dp.BernoulliDiffusion(dp.schedules.linear(4)), NETWORK, (3,))

def real(y=None):
    x = numpyro.sample("x", MODEL())
    sigma = numpyro.sample("sigma", dist.LogNormal(-0.7, 0.2))
    numpyro.sample("y", dist.Normal(x[:3], sigma).to_event(1), obs=y)

def plain(y=None):
    x = numpyro.sample("x", MODEL())
    numpyro.sample("y", dist.Normal(x[:3], 0.3).to_event(1), obs=y)

def two_numbers(y=None):
    known = dp.denoisers.Gaussian(S, np.zeros(2), np.ones(2))
    x = numpyro.sample("x", dp.DiffusionModel(dp.GaussianDiffusion(S), known, (2,))())
    numpyro.sample("y", dist.Normal(x[0] * x[1], 0.3), obs=y)

def correlated(y=None):
    x = numpyro.sample("x", MODEL())
    sigma = numpyro.sample("sigma", dist.LogNormal(-0.7, 0.2))
    for i in range(2):
        covariance = sigma * (jnp.eye(3) + 0.3)
        seen = None if y is None else y[i]
        numpyro.sample(f"y{i}", dist.MultivariateNormal(x[i : i + 3], covariance), obs=seen)

def two_sites(y=None):
    x = numpyro.sample("x", MODEL())
    b = numpyro.sample("b", BITS())
    numpyro.sample("y", dist.Normal(x[:3] + b, 0.3).to_event(1), obs=y)

def bits(y=None):
    b = numpyro.sample("b", BITS())
    numpyro.sample("y", dist.Normal(b, 0.3).to_event(1), obs=y)

def known(y=None):
    x = numpyro.sample("x", MODEL())
    numpyro.sample("y", dist.Delta(x[:3], event_dim=1), obs=y)

def run(program, method, y=jnp.ones(3)):
    p = dp.Posterior(program, method, num_chains=2, num_samples=20, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a chain of four steps collapses
        p.run(jax.random.key(0), y=y)
    p.posterior_predictive(); p.log_likelihood()
"""

CASES = {
    "tweedie": "run(real, dp.TwistedSMC(30))",
    "isotropic": """
twist = dp.twists.MomentMatching(dp.twists.Isotropic())
run(real, dp.TwistedSMC(30, twist=twist))
""",
    "pooled": """
twist = dp.twists.PooledMomentMatching()
run(real, dp.TwistedSMC(30, twist=twist))
run(correlated, dp.TwistedSMC(30, twist=twist), jnp.ones((2, 3)))
dp.calibrate(
    jax.random.key(0), plain, dp.TwistedSMC(30, twist=twist), observed="y", num_simulations=4,
    num_samples=9, progress_bar=False,
)
""",
    "quadrature": "run(two_numbers, dp.TwistedSMC(30, twist=dp.twists.Quadrature()), 0.5)",
    "point-estimate": "run(real, dp.TwistedSMC(30, twist=dp.twists.PointEstimate()))",
    "correlated": "run(correlated, dp.TwistedSMC(30), jnp.ones((2, 3)))",
    "mixed": "run(two_sites, dp.TwistedSMC(30))",
    "bits": "run(bits, dp.TwistedSMC(30))",
    "enumeration": "run(bits, dp.TwistedSMC(30, twist=dp.twists.Enumeration()))",
    "perturbation": "run(bits, dp.TwistedSMC(30, twist=dp.twists.Perturbation()))",
    "guidance": "run(plain, dp.Guidance())",
    "replacement": "run(known, dp.Replacement())",
    "split-gibbs": "run(plain, dp.SplitGibbs())",
    "particle-gibbs": """
kernel = dp.ParticleGibbs(real, num_particles=5)
blocks = numpyro.infer.Gibbs([(kernel, ["x"]), (numpyro.infer.NUTS(kernel.model), None)])
mcmc = numpyro.infer.MCMC(blocks, num_warmup=2, num_samples=5, progress_bar=False)
mcmc.run(jax.random.key(0), y=jnp.ones(3))
""",
    "calibrate": """
dp.calibrate(
    jax.random.key(0), real, dp.TwistedSMC(30), observed="y", num_simulations=4, num_samples=9,
    progress_bar=False,
)
""",
}


RUN = """
import json, pathlib, sys

dumps = pathlib.Path(sys.argv[1])
for case, code in json.load(sys.stdin).items():
    exec(code)
    jax.clear_caches()  # so that the next case compiles all of its own
    (dumps / case).mkdir()
    for path in dumps.glob("*after_optimizations.txt"):
        path.rename(dumps / case / path.name)
"""


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder for each case, with the programs that it compiled."""
    folder = tmp_path_factory.mktemp("dumps")
    flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*"
    flags += f" {FLAGS}"  # of what comes after the text that is read
    variables = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k}
    subprocess.run(
        [sys.executable, "-c", START + RUN, folder],
        input=json.dumps(CASES).encode(),
        env=variables | {"XLA_FLAGS": flags},
        check=True,
        timeout=1_200,
    )
    return folder


@pytest.mark.parametrize("case", CASES)
def test_no_two_calls_of_lapack_may_run_at_once(case: str, dumps: pathlib.Path):
    texts = [path.read_text() for path in (dumps / case).iterdir()]
    assert sum(len(text) for text in texts) > 100_000, "no programs were written"
    pairs = [pair for text in texts for pair in hlo.lapack_calls_at_once(text)]
    assert not pairs, pairs

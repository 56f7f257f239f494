"""Simulation-based calibration of two methods, one of which is biased.

Simulation-based calibration repeatedly draws parameters and data from the prior of the program, and
ranks the parameters among the posterior draws that a method computes from the data. If the draws
are from the exact posterior the ranks are uniform; the exact posterior itself is not required.

The prior is an asymmetric mixture of three Gaussians in the plane, observed with noise. It has an
analytic denoiser, so any error is that of the method.

Expected result: the ranks of twisted SMC stay within the simultaneous confidence band. The rule of
the 2015 paper, which multiplies every level of the chain by the likelihood and drops the
normalisers, counts the data about twice: the likelihood of its draws is too high, which the rank of
log_likelihood shows most clearly, and its 90 % intervals have a coverage of 85 %.

    python examples/calibration.py            about three minutes on two cores
    python examples/calibration.py --tiny     seconds, to see that it runs
"""

import argparse
import pathlib

import jax
import matplotlib.pyplot as plt
import numpyro
import numpyro.distributions as dist

import diffppl as dp

WEIGHTS = [0.5, 0.3, 0.2]
MEANS = [[-1.0, -0.5], [1.0, 0.7], [0.5, -1.5]]
VARIANCES = [0.1, 0.3, 0.05]
NOISE = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    num_steps, particles, num = (6, 100, 20) if args.tiny else (50, 1_000, 500)

    schedule = dp.schedules.log_snr_linear(num_steps, noise_to_signal=(0.03, 30.0))
    denoiser = dp.denoisers.GaussianMixture(schedule, WEIGHTS, MEANS, VARIANCES)
    model = dp.DiffusionModel(dp.GaussianDiffusion(schedule), denoiser, event_shape=(2,))

    def program(y=None):
        x = numpyro.sample("x", model())
        numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=y)

    methods = {
        "Twisted SMC": dp.TwistedSMC(particles),
        "The rule of 2015": dp.Guidance(dp.twists.Perturbation()),
    }
    results = {}
    for name, method in methods.items():
        results[name] = dp.calibrate(
            jax.random.key(0), program, method, observed="y", num_simulations=num, batch_size=10
        )
        print(f"\n{name}: p-values, and how often central intervals hold the truth")
        results[name].print_summary()
    draw(results).savefig(args.output / "calibration.png", dpi=110)
    print(f"\nwrote {args.output / 'calibration.png'}")


def draw(results: dict[str, dp.Calibration]) -> plt.Figure:
    """Plot the ranks of both methods side by side, on a common scale."""
    figure = plt.figure(figsize=(12, 3.2), layout="constrained")
    parts = figure.subfigures(1, len(results), wspace=0.04)
    drawn = []
    for part, (name, result) in zip(parts, results.items(), strict=True):
        part.suptitle(f"{name}: p-value {result.pvalue:.2g}")
        axes = part.subplots(1, len(result.ranks))
        drawn.extend(dp.plots.calibration(result, axes=axes))
    reach = max(abs(limit) for ax in drawn for limit in ax.get_ylim())
    for ax in drawn:
        ax.set_ylim(-reach, reach)
    return figure


if __name__ == "__main__":
    main()

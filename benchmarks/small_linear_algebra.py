"""Small factorisations of `diffppl.linalg` compared with LAPACK, over a batch of matrices.

Both run within a compiled loop, as in a sampler, with alternating timings. The output is the time
per matrix of each, their ratio (above 1 if `diffppl.linalg` is faster), and the compilation times
in seconds.

    python benchmarks/small_linear_algebra.py            about ten minutes
    taskset -c 0 python benchmarks/small_linear_algebra.py
    python benchmarks/small_linear_algebra.py --tiny     to see that it runs
"""

import argparse
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
from jax import Array

from diffppl import linalg


def positive_part(matrix: Array) -> Array:
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.maximum(values, 0)) @ vectors.T


# (diffppl.linalg, LAPACK), as functions of a covariance, its factor, a vector and a matrix.
OPERATIONS: dict[str, tuple[Callable, Callable]] = {
    "cholesky": (
        lambda a, factor, b, c: linalg.cholesky(a),
        lambda a, factor, b, c: jnp.linalg.cholesky(a),
    ),
    "solve, vector": (
        lambda a, factor, b, c: linalg.solve_triangular(factor, b),
        lambda a, factor, b, c: jsl.solve_triangular(factor, b, lower=True),
    ),
    "solve, matrix": (
        lambda a, factor, b, c: linalg.solve_triangular(factor, c),
        lambda a, factor, b, c: jsl.solve_triangular(factor, c, lower=True),
    ),
    "solve transposed, vector": (
        lambda a, factor, b, c: linalg.solve_triangular(factor, b, transpose=True),
        lambda a, factor, b, c: jsl.solve_triangular(factor, b, lower=True, trans=1),
    ),
    "eigh": (
        lambda a, factor, b, c: linalg.eigh(c + c.T),
        lambda a, factor, b, c: jnp.linalg.eigh(c + c.T),
    ),
    "nearest_psd": (
        lambda a, factor, b, c: linalg.nearest_psd(c + c.T),
        lambda a, factor, b, c: positive_part(c + c.T),
    ),
    "largest_eigenvalue": (
        lambda a, factor, b, c: linalg.largest_eigenvalue(a),
        lambda a, factor, b, c: jnp.linalg.eigvalsh(a)[-1],
    ),
}


def compiled(operation: Callable, inputs: tuple, repeats: int) -> tuple[Callable, float]:
    """Return a loop of `repeats` mapped operations, and the compilation time of one of them."""
    mapped = jax.vmap(operation)
    start = time.perf_counter()
    jax.jit(mapped).lower(*inputs).compile()
    seconds = time.perf_counter() - start

    def loop(*inputs: Array) -> Array:
        def step(carry: Array, _: None) -> tuple[Array, None]:
            found = mapped(*jax.tree.map(lambda x: x + 1e-9 * carry, inputs))
            return sum(jnp.sum(x) for x in jax.tree.leaves(found)), None

        return jax.lax.scan(step, jnp.zeros((), inputs[0].dtype), length=repeats)[0]

    run = jax.jit(loop).lower(*inputs).compile()
    return lambda: run(*inputs).block_until_ready(), seconds


def measured(m: int, batch: int, dtype: type, operations: tuple, rounds: int) -> np.ndarray:
    """Return microseconds per matrix, the minimum over rounds, and compilation times."""
    rng = np.random.default_rng(m)
    root = rng.normal(size=(batch, m, m + 2))
    covariance = root @ root.swapaxes(1, 2)
    inputs = tuple(
        jnp.asarray(x, dtype)
        for x in (
            covariance,
            np.linalg.cholesky(covariance),
            rng.normal(size=(batch, m)),
            rng.normal(size=(batch, m, m)),
        )
    )
    repeats = max(1, 10_000 // batch)
    loops, compilation = zip(*(compiled(f, inputs, repeats) for f in operations), strict=True)
    times = []
    for _ in range(rounds + 1):  # the first is a warm-up
        times.append([])
        for loop in loops:
            start = time.perf_counter()
            loop()
            times[-1].append((time.perf_counter() - start) / repeats / batch * 1e6)
    return np.concatenate([np.min(times[1:], axis=0), compilation])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--only", default="", help="operations with this in their name")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    sizes = (1, 3) if args.tiny else (1, 2, 4, 8, 16, 32)
    batches = (10,) if args.tiny else (1_000,)
    lines = ["| | rows | batch | dtype | µs | LAPACK, µs | ratio | compile, s | LAPACK, s |"]
    lines.append("| --- " * 9 + "|")
    print(*lines, sep="\n")
    for name, operations in OPERATIONS.items():
        if args.only not in name:
            continue
        for dtype in (np.float32, np.float64):
            for batch in batches:
                for m in sizes:
                    row = measured(m, batch, dtype, operations, 1 if args.tiny else 5)
                    here, lapack, compile_here, compile_lapack = row
                    lines.append(
                        f"| {name} | {m} | {batch:,} | {np.dtype(dtype).name} | {here:.3f} | "
                        f"{lapack:.3f} | {lapack / here:.2f} | {compile_here:.2f} | "
                        f"{compile_lapack:.2f} |"
                    )
                    print(lines[-1], flush=True)
    (args.output / "small_linear_algebra.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

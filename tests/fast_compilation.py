"""XLA flags with which programs are compiled fast, not well, each in one piece.

Most of the time of tests, and of examples at their smallest, is compilation. XLA reads its flags
when JAX starts, and stops at a flag that it does not have.

    XLA_FLAGS=$(python tests/fast_compilation.py) python examples/quickstart.py --tiny
"""

import importlib.metadata

FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"

if importlib.metadata.version("jaxlib").startswith("0.10."):
    # XLA's older emitters, which later versions lack, take half the time.
    FLAGS += " --xla_cpu_use_fusion_emitters=false"

if __name__ == "__main__":
    print(FLAGS)

"""
GPU kernels in Triton, one file each, for what lies between the matrix products of a layer.

Each file has the kernel, a function over tensors that launches it once, the *twin* of that function, which
computes the same in plain torch and FP32, and a ``sample`` to compare both with. A kernel is given the shapes
of the network as constants and nothing that depends on the number of tokens: each variant is compiled once,
at the start, and serves batches of every size. All arithmetic is in FP32, and each result is rounded once.

``scripts/compile_kernels.py`` compiles all of them ahead of time. Importing this package imports neither
torch nor Triton; the files of the kernels import Triton.
"""

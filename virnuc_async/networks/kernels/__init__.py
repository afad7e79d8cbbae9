"""
GPU kernels in Triton, one file each, for what lies between the matrix products of a layer.

Each file has the kernel, a function over tensors that launches it once, the *twin* of that function, which
computes the same in plain torch and FP32, and ``variants``. A kernel is given the shapes of the network as
constants and nothing that depends on the number of tokens: each variant is compiled once, at the start, and
serves batches of every size. All arithmetic is in FP32, and each result is rounded once.

``variants(dtype)`` yields a :class:`~.launching.Variant` for each compilation that the published networks
need with tensors of *dtype*; :data:`.launching.MODULES` names the files, so that all of them can be compiled
ahead of time::

    for name in MODULES:
        for variant in import_module(f"virnuc_async.networks.kernels.{name}").variants(torch.bfloat16):
            compile(ASTSource(variant.kernel, variant.signature, variant.constants), options=variant.options)

Importing this package imports neither torch nor Triton; the files of the kernels import Triton.
"""

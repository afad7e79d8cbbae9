"""
Which instruction sets of the processor are really used: they decide the last digits of a result.

Three libraries compute on a CPU. Each can be limited by variables of the environment, and does not say so.
"""

from collections.abc import Iterable, Mapping
from os import environ
from pathlib import Path

import torch

from virnuc_async.networks.linear import can_prepack

# oneDNN's names from the smallest to the largest, each with the flags of Linux that it needs beside those
# of the sets that it includes.
_AVX512 = {"avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq"}
_BF16 = _AVX512 | {"avx512_vnni", "avx512_bf16"}
_AMX = _BF16 | {"avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"}
_ONEDNN: Mapping[str, set[str]] = {
    "SSE41": {"sse4_1"},
    "AVX": {"avx"},
    "AVX2": {"avx2"},
    "AVX2_VNNI": {"avx2", "avx_vnni"},
    "AVX512_CORE": _AVX512,
    "AVX512_CORE_VNNI": _AVX512 | {"avx512_vnni"},
    "AVX512_CORE_BF16": _BF16,
    "AVX512_CORE_FP16": _BF16 | {"avx512_fp16"},
    "AVX512_CORE_AMX": _AMX,
    "AVX512_CORE_AMX_FP16": _AMX | {"amx_fp16"},
}
_ALIASES = {"AVX10_1_512": "AVX512_CORE_FP16", "AVX10_1_512_AMX": "AVX512_CORE_AMX"} | {
    "AVX10_1_512_AMX_FP16": "AVX512_CORE_AMX_FP16"
}
_MKL: Mapping[str, set[str]] = {
    "SSE4_2": {"sse4_2"},
    "AVX": {"avx"},
    "AVX2": {"avx2"},
    "AVX512": _AVX512,
    "AVX512_E1": _AVX512 | {"avx512_vnni"},
    "AVX512_E3": _BF16,
    "AVX512_E4": _AMX,
}
_NOT_LIMITED = ("", "AUTO", "OFF", "BRANCH_OFF")  # values of MKL_CBWR


def instruction_sets() -> str:
    """Return what torch and oneDNN use of this processor, and what MKL is limited to, as one text."""
    return describe(torch.backends.cpu.get_cpu_capability(), environ, _processor_flags())


def describe(of_torch: str, environment: Mapping[str, str], flags: Iterable[str]) -> str:
    """Return the text for a processor with *flags*, as Linux calls them, of which torch uses *of_torch*."""
    values = {name: value.strip().upper() for name, value in environment.items()}
    parts = [of_torch]
    if onednn := _used(_ONEDNN, _limit(environment), set(flags)):
        parts.append(f"oneDNN {onednn}")
    if hints := values.get("ONEDNN_CPU_ISA_HINTS") or values.get("DNNL_CPU_ISA_HINTS"):
        parts.append(hints)
    mkl = values.get("MKL_ENABLE_INSTRUCTIONS", "")
    if mkl in _MKL and _used(_MKL, mkl, set(flags)) != _used(_MKL, "", set(flags)):
        parts.append(f"MKL {mkl}")
    if (branch := values.get("MKL_CBWR", "")) not in _NOT_LIMITED:
        parts.append(f"MKL_CBWR {branch}")
    return ", ".join(parts)


def has_native_bf16() -> bool:
    """Return whether this processor multiplies in BF16, and torch and oneDNN use it."""
    return is_bf16_used(environ, _processor_flags()) and can_prepack(torch.bfloat16)


def is_bf16_used(environment: Mapping[str, str], flags: Iterable[str]) -> bool:
    """Return whether oneDNN multiplies in BF16 on a processor with *flags*, as Linux calls them."""
    return _ONEDNN.get(_used(_ONEDNN, _limit(environment), set(flags)), set()) >= _BF16


def _limit(environment: Mapping[str, str]) -> str:
    """Return oneDNN's limit, by the name that it has here; "" without one."""
    limit = environment.get("ONEDNN_MAX_CPU_ISA") or environment.get("DNNL_MAX_CPU_ISA") or ""
    limit = limit.strip().upper()
    return _ALIASES.get(limit, limit)


def _used(known: Mapping[str, set[str]], limit: str, flags: set[str]) -> str:
    """Return the largest set that the processor has, not above *limit* if that is one; "" if not known."""
    names = [*known]
    allowed = names[: names.index(limit) + 1] if limit in known else names
    return next((name for name in reversed(allowed) if known[name] <= flags), "")


def _processor_flags() -> set[str]:
    """Return the flags of the processor; none where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text("latin-1").splitlines()
    except OSError:
        return set()
    return next((set(line.split(":")[1].split()) for line in lines if line.startswith("flags")), set())

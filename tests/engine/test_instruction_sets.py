"""Which instruction sets of the processor are used, as the kind of a CPU says."""

import os
import re
import subprocess
import sys

import pytest
import torch
from running import ROOT

from virnuc_async.engine.instruction_sets import describe, instruction_sets, is_bf16_used

HASWELL = {"sse4_1", "sse4_2", "avx", "avx2"}
SKYLAKE = HASWELL | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
EPYC = SKYLAKE | {"avx_vnni", "avx512_vnni", "avx512_bf16"}
SAPPHIRE = EPYC | {"avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"}


@pytest.mark.parametrize(
    ("flags", "environment", "text"),
    [
        (HASWELL, {}, "AVX2, oneDNN AVX2"),
        (SKYLAKE, {}, "AVX2, oneDNN AVX512_CORE"),
        (SAPPHIRE, {}, "AVX2, oneDNN AVX512_CORE_AMX"),
        (EPYC, {}, "AVX2, oneDNN AVX512_CORE_BF16"),
        (EPYC, {"ONEDNN_MAX_CPU_ISA": "avx2"}, "AVX2, oneDNN AVX2"),
        (EPYC, {"DNNL_MAX_CPU_ISA": "AVX2_VNNI"}, "AVX2, oneDNN AVX2_VNNI"),
        (SKYLAKE, {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"}, "AVX2, oneDNN AVX2"),
        # A limit above what the processor has, or that is none, changes nothing.
        (EPYC, {"ONEDNN_MAX_CPU_ISA": "AVX10_1_512_AMX"}, "AVX2, oneDNN AVX512_CORE_BF16"),
        (EPYC, {"ONEDNN_MAX_CPU_ISA": "DEFAULT"}, "AVX2, oneDNN AVX512_CORE_BF16"),
        (EPYC, {"ONEDNN_MAX_CPU_ISA": ""}, "AVX2, oneDNN AVX512_CORE_BF16"),
        (HASWELL, {"MKL_ENABLE_INSTRUCTIONS": "AVX512"}, "AVX2, oneDNN AVX2"),
        (SKYLAKE, {"MKL_ENABLE_INSTRUCTIONS": "AVX2"}, "AVX2, oneDNN AVX512_CORE, MKL AVX2"),
        (HASWELL, {"MKL_CBWR": "AUTO"}, "AVX2, oneDNN AVX2"),
        (HASWELL, {"MKL_CBWR": "COMPATIBLE"}, "AVX2, oneDNN AVX2, MKL_CBWR COMPATIBLE"),
        (set(), {}, "AVX2"),
    ],
)
def test_what_is_used(flags: set[str], environment: dict[str, str], text: str) -> None:
    assert describe("AVX2", environment, flags) == text


_ONEDNN_SAYS = {  # its own words
    "SSE4.1": "SSE41",
    "AVX": "AVX",
    "AVX2": "AVX2",
    "AVX2 with Intel DL Boost": "AVX2_VNNI",
    "AVX-512 with AVX512BW, AVX512VL, and AVX512DQ extensions": "AVX512_CORE",
    "AVX-512 with Intel DL Boost": "AVX512_CORE_VNNI",
    "AVX-512 with Intel DL Boost and bfloat16 support": "AVX512_CORE_BF16",
}
_COMPUTES = """
import torch
from torch.utils import mkldnn
from virnuc_async.engine.instruction_sets import instruction_sets
mkldnn.to_mkldnn(torch.nn.Linear(8, 8))(torch.ones(8, 8).to_mkldnn())
print(instruction_sets())
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["", "AVX2", "SSE41", "AVX512_CORE", "AVX2_VNNI"])
def test_it_is_what_onednn_says(limit: str) -> None:
    environment = os.environ | {"ONEDNN_VERBOSE": "1", "ONEDNN_MAX_CPU_ISA": limit}
    command = [sys.executable, "-c", _COMPUTES]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    said = re.search(r"cpu,isa:(?:Intel )?(.*)", done.stdout)
    if said is None or said[1] not in _ONEDNN_SAYS:
        pytest.skip("this processor is not known here")
    assert done.stdout.splitlines()[-1].split(", ")[1] == f"oneDNN {_ONEDNN_SAYS[said[1]]}"


@pytest.mark.slow
def test_the_limit_of_torch_is_seen() -> None:
    command = [sys.executable, "-c", _COMPUTES]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.startswith("DEFAULT")


@pytest.mark.parametrize(
    ("flags", "environment", "has_bf16"),
    [
        (set(), {}, False),
        (SKYLAKE, {}, False),
        (EPYC, {}, True),
        (SAPPHIRE, {}, True),
        (EPYC, {"ONEDNN_MAX_CPU_ISA": "avx512_core"}, False),
        (SAPPHIRE, {"DNNL_MAX_CPU_ISA": "AVX512_CORE_BF16"}, True),
    ],
)
def test_bf16_is_native_where_onednn_multiplies_in_it(
    flags: set[str], environment: dict[str, str], has_bf16: bool
) -> None:
    assert is_bf16_used(environment, flags) is has_bf16


def test_of_this_process() -> None:
    assert instruction_sets().startswith(torch.backends.cpu.get_cpu_capability())

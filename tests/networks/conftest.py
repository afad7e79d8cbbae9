"""Networks that several test modules compare with."""

from pathlib import Path

import pytest
from golden_networks import DNABERT_SETS, EsmPair, GoldenDnabert, esm_pair, read_dnabert

from virnuc_async.networks.shapes import ProteinShape


@pytest.fixture(scope="module", params=DNABERT_SETS)
def dnabert(
    request: pytest.FixtureRequest, golden: Path, tmp_path_factory: pytest.TempPathFactory
) -> GoldenDnabert:
    """A network whose outputs were computed by the published bert_layers.py."""
    return read_dnabert(golden / "dnabert" / request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=[(2, 40, 4), (3, 64, 1), (2, 96, 12)], ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EsmPair:
    """fair-esm's ESM-2 and ours with the same random weights."""
    return esm_pair(ProteinShape(*request.param), tmp_path_factory.mktemp("esm") / "esm2_tiny.pt")

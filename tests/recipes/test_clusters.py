"""Kubernetes and AWS Batch: their files as the makers' schemas have them, and run by stand-ins."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from object_stores import Bucket
from recipe_files import (
    RECIPES,
    SHARDS,
    Note,
    Shell,
    Tables,
    commands,
    compute_in_segments,
    few_shards,
    read_tables,
)

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(180)]
HERE = Path(__file__).parent
KUBERNETES, AWS = RECIPES / "kubernetes", RECIPES / "aws-batch"


@pytest.fixture
def cluster(shell: Shell, contigs: Path) -> Shell:
    """A shell in a directory with the files of both recipes, for a few shards, and the input in data/."""
    compute_in_segments(shell)
    for path in (*KUBERNETES.iterdir(), *AWS.iterdir()):
        (shell.directory / path.name).write_text(few_shards(path.read_text()))
    (shell.directory / "data").mkdir()
    (shell.directory / "data" / "metagenome.fa.gz").symlink_to(contigs)
    shell.add("kubectl", f'exec "{sys.executable}" "{HERE}/fake_kubectl.py" "$@"')
    return shell


@pytest.fixture
def aws(cluster: Shell, tool: Callable[[str], str]) -> Shell:
    """A shell with a stand-in for the program of AWS."""
    python = Path(tool("kubernetes-validate")).parent / "python"
    cluster.add("aws", f'exec "{python}" "{HERE}/fake_aws.py" "$@"')
    return cluster


def merged(cluster: Shell) -> Tables:
    data = cluster.directory / "data"
    return read_tables(data / "results", data / "metagenome.fa.gz")


def test_the_jobs_of_kubernetes_are_valid(cluster: Shell, tool: Callable[[str], str], note: Note) -> None:
    validate = f"{tool('kubernetes-validate')} --strict --kubernetes-version"
    files = " ".join(str(path) for path in sorted(KUBERNETES.iterdir()))
    for version in ("1.33", "1.37"):
        printed = cluster.run(f"{validate} {version} {files} 2>&1")
        assert printed.count(f"against version {version}") == 3
    note("Kubernetes: kubernetes-validate --strict")


def test_kubernetes(cluster: Shell, in_segments: Tables, note: Note) -> None:
    cluster.run(commands("Kubernetes"))
    assert merged(cluster) == in_segments
    note("Kubernetes: the commands of the README, with a stand-in for kubectl; byte-identical to one machine")


def test_kubernetes_waits_for_every_shard(cluster: Shell) -> None:
    shutil.copytree(cluster.directory / "data", cluster.directory / "other")
    path = cluster.directory / "shards.yaml"
    path.write_text(path.read_text().replace("/data/run", "/data/elsewhere"))
    cluster.run(commands("Kubernetes"), code=1)
    assert not (cluster.directory / "jobs" / "virnuc-async-merge").exists()


def test_aws_batch(aws: Shell, in_segments: Tables, note: Note) -> None:
    aws.run(few_shards(commands("AWS Batch")))
    jobs = aws.directory / "jobs"
    assert {path.name: path.read_text() for path in jobs.iterdir()} == {"0": "0", "1": "0" * SHARDS, "2": "0"}
    assert merged(aws) == in_segments
    note("AWS Batch: requests checked by AWS's library; the commands of the README, byte-identical")


def test_aws_batch_with_a_bucket_alone(bucket: Bucket, aws: Shell, in_segments: Tables, note: Note) -> None:
    aws.environment |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    url = bucket.put("metagenome.fa.gz", (aws.directory / "data" / "metagenome.fa.gz").read_bytes())
    for path in aws.directory.glob("*.json"):
        definition = json.loads(path.read_text().replace("/data/", f"{bucket.root}/"))
        del definition["containerProperties"]["volumes"], definition["containerProperties"]["mountPoints"]
        path.write_text(json.dumps(definition))
    *computed, _, _ = few_shards(commands("AWS Batch")).replace("/data/", f"{bucket.root}/").splitlines()
    aws.run("\n".join(computed))
    aws.run(f"virnuc-async merge {bucket.root}/run results/")
    assert read_tables(aws.directory / "results", url) == in_segments
    note("AWS Batch without a file system, on a local S3 server: byte-identical to one machine")


def test_aws_batch_merges_nothing_without_a_shard(aws: Shell) -> None:
    path = aws.directory / "shards.json"
    definition = json.loads(path.read_text())
    definition["parameters"]["run"] = "/data/elsewhere"
    path.write_text(json.dumps(definition))
    aws.run(few_shards(commands("AWS Batch")))
    assert (aws.directory / "jobs" / "1").read_text() == "1" * SHARDS
    assert (aws.directory / "jobs" / "2").read_text() == "1"
    assert not (aws.directory / "data" / "results").exists()


def test_a_request_that_aws_would_refuse_is_refused(aws: Shell) -> None:
    path = aws.directory / "shards.json"
    path.write_text(path.read_text().replace("jobDefinitionName", "name"))
    printed = aws.run(few_shards(commands("AWS Batch")), code=1)
    assert "jobDefinitionName" in printed

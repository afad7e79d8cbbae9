"""
A stand-in for ``kubectl`` that runs Jobs: ``apply`` runs all pods of one, ``wait`` looks how they ended.

Exit codes of pods are kept in the working directory; /data of a pod is data/ there.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

JOBS = Path("jobs")


def apply(path: str) -> None:
    """Run the pods of the Job in a file, one after the other."""
    job = yaml.safe_load(Path(path).read_text())
    spec = job["spec"]
    is_indexed = spec.get("completionMode") == "Indexed"
    JOBS.mkdir(exist_ok=True)
    codes = [run(spec["template"]["spec"], number if is_indexed else None) for number in range(pods(spec))]
    (JOBS / job["metadata"]["name"]).write_text(" ".join(map(str, codes)))


def pods(spec: dict[str, Any]) -> int:
    return int(spec.get("completions", 1))


def run(pod: dict[str, Any], index: int | None) -> int:
    """Run the container of a pod and return its exit code."""
    (container,) = pod["containers"]
    (mount,) = container["volumeMounts"]
    assert mount["mountPath"] == "/data"
    assert mount["name"] in [volume["name"] for volume in pod["volumes"]]
    words = [str(word).replace("/data", f"{os.getcwd()}/data") for word in container["command"]]
    number = {} if index is None else {"JOB_COMPLETION_INDEX": str(index)}
    return subprocess.run(words, env=os.environ | number).returncode


def wait(job: str) -> None:
    """Exit with 1 unless all pods of *job*, as in job/NAME, have ended with 0."""
    codes = (JOBS / job.removeprefix("job/")).read_text().split()
    sys.exit(set(codes) != {"0"})


if __name__ == "__main__":
    action, *words = sys.argv[1:]
    {"apply": apply, "wait": wait}[action](words[-1])

"""
A stand-in for ``aws batch``: checks requests as AWS's own library does, and runs the jobs, each at once.

Job definitions and the exit codes of jobs are kept in the working directory; /data of a job is data/ there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from botocore.session import get_session
from botocore.validate import validate_parameters

DEFINITIONS, JOBS = Path("definitions"), Path("jobs")
MODEL = get_session().get_service_model("batch")
JSON = {"--cli-input-json", "--container-overrides"}
PAIRS = {"--array-properties", "--depends-on", "--parameters"}


def parse(words: list[str]) -> dict[str, Any]:
    """Return the parameters of a request that these words of a command line stand for."""
    found: dict[str, Any] = {}
    for option, word in zip(words[::2], words[1::2], strict=True):
        first, *others = option[2:].split("-")
        name = first + "".join(map(str.capitalize, others))
        if option in JSON:
            path = word.removeprefix("file://")
            found[name] = json.loads(Path(path).read_text() if path != word else word)
        elif option in PAIRS:
            found[name] = dict(part.split("=") for part in word.split(","))
        elif option not in ("--query", "--output"):
            found[name] = word
    if "dependsOn" in found:
        found["dependsOn"] = [found["dependsOn"]]
    if "arrayProperties" in found:
        found["arrayProperties"] = {"size": int(found["arrayProperties"]["size"])}
    return found


def check(operation: str, request: dict[str, Any]) -> None:
    shape = MODEL.operation_model(operation).input_shape
    validate_parameters(request, shape)


def register(request: dict[str, Any]) -> None:
    definition = request["cliInputJson"]
    check("RegisterJobDefinition", definition)
    DEFINITIONS.mkdir(exist_ok=True)
    (DEFINITIONS / definition["jobDefinitionName"]).write_text(json.dumps(definition))


def submit(request: dict[str, Any]) -> None:
    check("SubmitJob", request)
    definition = json.loads((DEFINITIONS / request["jobDefinition"]).read_text())
    JOBS.mkdir(exist_ok=True)
    number = str(len(list(JOBS.iterdir())))
    print(number)
    codes = [(JOBS / each["jobId"]).read_text() for each in request.get("dependsOn", ())]
    if set("".join(codes)) <= {"0"}:
        size = request.get("arrayProperties", {}).get("size", 1)
        found = [run(definition, request, task) for task in range(size)]
        (JOBS / number).write_text("".join(map(str, found)))
    else:
        (JOBS / number).write_text("1")  # as AWS has it: the job fails with those that it depends on


def run(definition: dict[str, Any], request: dict[str, Any], task: int) -> int:
    """Run a task of a job and return its exit code."""
    container = definition["containerProperties"]
    command = request.get("containerOverrides", container)["command"]
    values = definition.get("parameters", {}) | request.get("parameters", {})
    words = [values[word[5:]] if word.startswith("Ref::") else word for word in command]
    words = [word.replace("/data", f"{os.getcwd()}/data") for word in words]
    assert all(place["containerPath"] == "/data" for place in container.get("mountPoints", ()))
    is_array = "arrayProperties" in request
    number = {"AWS_BATCH_JOB_ARRAY_INDEX": str(task)} if is_array else {}
    return subprocess.run(words, env=os.environ | number, stdout=sys.stderr).returncode


if __name__ == "__main__":
    batch, action, *rest = sys.argv[1:]
    assert batch == "batch"
    {"register-job-definition": register, "submit-job": submit}[action](parse(rest))

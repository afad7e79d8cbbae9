"""Print the inputs and outputs of each task of a WDL file as JSON; for an interpreter that has miniwdl."""

import json
import sys

import WDL

tasks = {
    task.name: {
        "inputs": {each.name: f"{each.type} {each.expr or ''}".strip() for each in task.inputs},
        "outputs": {each.name: str(each.type) for each in task.outputs},
        "runtime": {name: str(value) for name, value in task.runtime.items()},
    }
    for task in WDL.load(sys.argv[1]).tasks
}
print(json.dumps(tasks))

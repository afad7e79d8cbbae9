"""
Run the tests of a Galaxy tool without Galaxy: its parser, Cheetah and its checks of outputs, from PyPI.

For an interpreter that has galaxy-tool-util and CT3: ``galaxy_tool.py TOOL.xml DIRECTORY``; each test gets a
directory of its own in DIRECTORY. Prints the command of each test.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from Cheetah.Template import Template
from galaxy.tool_util.parser import get_tool_source
from galaxy.tool_util.verify import verify


class Dataset(str):
    """The path of an input, with the name that it has in a history."""

    element_identifier = ""


class Group(dict[str, Any]):
    """The values of a conditional, whose names are attributes in templates."""

    __getattr__ = dict.__getitem__


def values_of(page: Any, test: dict[str, str], data: Path, prefix: str = "") -> Group:
    """Return the values of the inputs of a page, from a test or by default."""
    values = Group()
    for each in page.parse_input_sources():
        if each.parse_input_type() == "conditional":
            group = f"{prefix}{each.parse_name()}|"
            switch = each.parse_test_input_source()
            chosen = value_of(switch, test, data, group)
            inner = dict(each.parse_when_input_sources())[chosen]
            values[each.parse_name()] = Group(
                {switch.parse_name(): chosen} | values_of(inner, test, data, group)
            )
        else:
            values[each.parse_name()] = value_of(each, test, data, prefix)
    return values


def value_of(source: Any, test: dict[str, str], data: Path, prefix: str) -> Any:
    """Return the value of one input, as the template sees it."""
    given = test.get(prefix + source.parse_name())
    if source.get("type") == "data":
        files = [Dataset(data / name) for name in (given or "").split(",")]
        for file in files:
            file.element_identifier = Path(file).name
        return files
    if given is not None:
        return given
    if source.get("type") == "select":
        chosen = [value for _, value, selected in source.parse_static_options() if selected]
        return ",".join(chosen) or None
    return source.get("value")


def run_test(source: Any, test: dict[str, Any], data: Path, directory: Path) -> str:
    """Run a test in *directory* and return the command; an assertion fails where the tool does."""
    given = {each["name"]: each["value"] for each in test["inputs"]}
    values = values_of(source.parse_input_pages().page_sources[0], given, data)
    command = str(Template(source.parse_command(), searchList=[values]))
    command = command.replace("\n", " ").strip()  # as Galaxy does
    directory.mkdir()
    subprocess.run(["bash", "-c", command], cwd=directory, check=True)
    outputs, _ = source.parse_outputs(None)
    kept = {
        name: output
        for name, output in outputs.items()
        # As Galaxy does: a filter is an expression of Python.
        if all(eval(each.text, {}, dict(values)) for each in output.filters)
    }
    assert len(kept) == int(test["expect_num_outputs"])
    for output in test["outputs"]:
        path = directory / kept[output["name"]].from_work_dir
        verify(output["name"], path.read_bytes(), output["attributes"], filename=None)
    for output in kept.values():
        assert (directory / output.from_work_dir).exists()
    return command


def main(tool: Path, place: Path) -> None:
    """Run all tests of a tool."""
    source = get_tool_source(str(tool))
    for number, test in enumerate(source.parse_tests_to_dict()["tests"], 1):
        print(run_test(source, test, tool.parent / "test-data", place / str(number)))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))

"""Prints the ids of the tests that failed, or whose fixtures did, as pytest takes them: `failures.py REPORT`.

The report is pytest's `--junitxml` with `junit_family=xunit1`.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree


def failed(case: ElementTree.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None


def node(case: ElementTree.Element) -> str:
    """The test's id: file, classes, name."""
    file = case.attrib.get("file", "")
    module = file.removesuffix(".py").replace("/", ".")
    classes = case.attrib["classname"].removeprefix(module).strip(".")
    return "::".join([file, *filter(None, classes.split(".")), case.attrib["name"]])


if __name__ == "__main__":
    for id in dict.fromkeys(node(case) for case in ElementTree.parse(sys.argv[1]).iter("testcase") if failed(case)):
        print(id)

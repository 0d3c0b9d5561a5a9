"""Results of a matrix build as JUnit XML, which every CI system shows: a suite for each bundle, a case for each claim."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from pocketphi.compiler.build_result import Result


def to_junit(results: Sequence[Result]) -> str:
    """XML text. A claim that does not hold is a failure, a bundle that could not be built an error."""
    root = ET.Element("testsuites", name="pocketphi build")
    for result in results:
        suite = ET.SubElement(root, "testsuite", name=result.name, time=f"{result.seconds:.3f}")
        build = _case(suite, result, "build", result.seconds)
        if result.error:
            ET.SubElement(build, "error", message=_clean(result.error))
        for claim in result.claims:
            case = _case(suite, result, claim.name)
            if not claim.ok:
                ET.SubElement(case, "failure", message=_clean(claim.described()))
    for part in (*root, root):
        for key, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
            part.set(key, str(len(part.findall(f".//{tag}"))))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _case(suite: ET.Element, result: Result, name: str, seconds: float = 0.0) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=result.name, name=_clean(name), time=f"{seconds:.3f}")


def _clean(text: str) -> str:
    """Without characters that XML 1.0 has no way to write."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)

"""The software bill of materials (CycloneDX) of what the wheel declares.

`make sbom` writes it; wheels carry it as .dist-info/sboms (PEP 770). It lists the packages of
pyproject.toml with their ranges and the licences of NOTICE: the wheel contains none of them, and
which versions are installed is decided elsewhere.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.requirements import Requirement

ROOT: Final = Path(__file__).parents[1]
FILE: Final = Path(__file__).with_name("sana-rt.cdx.json")
_NOTICE: Final = re.compile(r"^    ([\w-]+) (?:\(\w+\))? *(.+)$", re.MULTILINE)


def text() -> str:
    """The bill as JSON, the same bytes for the same project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = re.search(r'__version__ = "(.+)"', _read("src/sana_rt/__init__.py"))
    assert version is not None
    name = project["name"]
    own = _component(name, project["license"], version[1])
    parts = list(_dependencies(project))
    bom = Bom(components=parts, serial_number=uuid5(NAMESPACE_URL, f"{name}@{version[1]}"))
    bom.metadata.component = own
    bom.register_dependency(own, parts)
    bill = json.loads(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string())
    del bill["metadata"]["timestamp"]
    return json.dumps(bill, indent=2) + "\n"


def _dependencies(project: dict[str, dict[str, list[str]]]) -> Iterator[Component]:
    licences = dict(reversed(_NOTICE.findall(_read("NOTICE"))))  # the first of each name
    wanted: dict[str, dict[str, str]] = {}
    for extra, lines in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        for line in lines:
            requirement = Requirement(str(line))
            wanted.setdefault(requirement.name, {})[extra] = str(requirement.specifier)
    for name, ranges in sorted(wanted.items()):
        component = _component(name, licences[name])
        component.scope = ComponentScope.REQUIRED if "" in ranges else ComponentScope.OPTIONAL
        for extra, versions in ranges.items():
            where = f"sana-rt[{extra}]" if extra else "sana-rt"
            component.properties.add(Property(name=f"{where}:versions", value=versions))
        yield component


def _component(name: str, licence: str, version: str | None = None) -> Component:
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=name,
        purl=PackageURL("pypi", name=name.replace("_", "-"), version=version),
        licenses=[LicenseFactory().make_from_string(licence)],
    )


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"{FILE}\n")

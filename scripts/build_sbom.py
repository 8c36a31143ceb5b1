"""The bill of materials of a release, in CycloneDX: what it is made of, each with its hash."""

import hashlib
import uuid
from datetime import datetime
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.utils import parse_wheel_filename

#: Bills of one build are the same, so their number comes from its version.
_NAMESPACE = uuid.UUID("5a2e5f0c-6c0f-5d5c-9a0d-3b1f4f0f8f2d")


def bill(version: str, time: datetime, wheels: list[Path], own: Path) -> str:
    """The bill of a release with these wheels, of which one is our `own`, as JSON."""
    bom = Bom(serial_number=uuid.uuid5(_NAMESPACE, version))
    bom.metadata.timestamp = time
    release = Component(
        name="tap-trading", version=version, type=ComponentType.APPLICATION, bom_ref="tap-trading"
    )
    bom.metadata.component = release
    parts = []
    for path in sorted(wheels):
        if path == own:
            continue
        name, number, _, _ = parse_wheel_filename(path.name)
        parts.append(
            Component(
                name=name,
                version=str(number),
                type=ComponentType.LIBRARY,
                bom_ref=f"{name}=={number}",
                purl=PackageURL("pypi", None, name, str(number)),
                hashes=[
                    HashType(
                        alg=HashAlgorithm.SHA_256,
                        content=hashlib.sha256(path.read_bytes()).hexdigest(),
                    )
                ],
            )
        )
    bom.components.update(parts)
    bom.register_dependency(release, parts)
    outputter = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6)
    return outputter.output_as_string(indent=2) + "\n"

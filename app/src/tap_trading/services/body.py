"""JSON bodies of requests, read strictly: an object with exactly the fields a call takes."""

from collections.abc import Set as AbstractSet
from typing import Any

import orjson

from tap_trading.base.errors import ProblemError

#: An unknown field's name is repeated to the client up to this many characters.
_SHOWN = 64


def fields(
    body: bytes, required: AbstractSet[str], optional: AbstractSet[str] = frozenset()
) -> dict[str, Any]:
    """The fields of a JSON object. Raises ProblemError `malformed` for anything else."""
    try:
        found: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProblemError(400, "malformed", f"The body is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise ProblemError(400, "malformed", "The body must be a JSON object.")
    if found.keys() == required:
        return found
    if unknown := sorted(found.keys() - required - optional):
        raise ProblemError(400, "malformed", f"Unknown field: {unknown[0][:_SHOWN]}.")
    if missing := sorted(required - found.keys()):
        raise ProblemError(400, "malformed", f"The field {missing[0]} is missing.")
    return found


def text_fields(body: bytes, required: AbstractSet[str]) -> dict[str, str]:
    """The same for a call whose fields are all strings."""
    found = fields(body, required)
    if wrong := sorted(name for name, value in found.items() if not isinstance(value, str)):
        raise ProblemError(400, "malformed", f"{wrong[0]} must be a string.")
    return found

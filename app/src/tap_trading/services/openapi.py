"""The API's own description: an OpenAPI 3.1 document, kept in `openapi.json` beside this.

The file is the contract as people read and change it; only the version is filled in here.
Tests compare it with the application's routes and with what they really answer.
"""

from functools import cache
from importlib import resources
from typing import Any

import orjson
from aiohttp import web

from tap_trading.base import version
from tap_trading.services.http import json_response


@cache
def document() -> dict[str, Any]:
    """The document, with the running build's version."""
    file = resources.files("tap_trading.services").joinpath("openapi.json")
    found: dict[str, Any] = orjson.loads(file.read_bytes())
    found["info"]["version"] = version.current().version
    return found


async def show_openapi(_request: web.Request) -> web.Response:
    """The document."""
    return json_response(document())

"""What Schemathesis cannot know of the API: real addresses, and cells that are on the grid."""

import secrets
from typing import Any

import requests
import schemathesis
from hypothesis import strategies as st

from tap_trading.auth import base58

_STAKE = 100  # cents

schemathesis.openapi.format(
    "solana-address", st.binary(min_size=32, max_size=32).map(base58.encode)
)


@schemathesis.hook
def before_call(
    context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]
) -> None:
    """Let every other well-formed bet be one that can be placed."""
    if case.operation.label != "POST /api/bets" or not case.meta.generation.mode.is_positive:
        return
    if secrets.randbelow(2):
        return
    market = requests.get(f"{case.operation.base_url}/api/market", timeout=5).json()
    case.body["cell_id"] = secrets.choice(market["cells"])["cell_id"]
    case.body["amount"] = _STAKE
    case.headers["Idempotency-Key"] = secrets.token_hex(8)

"""How the resolver tells what a transaction has changed: a message through Redis, which whoever
has traders connected picks their own from. It has numbers as they are; what a trader is shown
is made only for those who are there to see it.
"""

import orjson

from tap_trading.ledger.queries import Bet
from tap_trading.ledger.resolving import Changes

#: What a transaction has changed is published here.
CHANNEL = "bets:changes"


def encode(changes: Changes) -> bytes:
    """Changes as Redis carries them: each bet as a list of its user and its fields."""
    return orjson.dumps(
        {"bets": [(user, *bet) for user, bet in changes.bets], "balances": changes.balances}
    )


def decode(wire: bytes) -> Changes:
    """Read changes. Raises ValueError when these are none."""
    try:
        said = orjson.loads(wire)
        bets = [(str(user), Bet(*fields)) for user, *fields in said["bets"]]
        balances = {str(user): int(balance) for user, balance in said["balances"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"no changes ({error!r}): {wire[:80]!r}") from error
    return Changes(bets, balances)

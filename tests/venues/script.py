"""What a player plays."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Line:
    """A message and its moment."""

    at_s: float  # seconds of the script's own time
    text: Callable[[], str]  # made when it is sent


class Script(Protocol):
    """An exchange's part."""

    #: Whether it begins before the client has said anything.
    speaks_first: bool

    def lines(self, since_s: float) -> Iterator[Line]:
        """The messages from a moment of its own time on, in order."""

    def answers(self, said: str, since_s: float) -> Sequence[str]:
        """Replies to what a client says at that moment."""

    def heartbeat(self) -> str | None:
        """A sign of life, if the exchange gives one by itself."""

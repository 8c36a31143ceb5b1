"""The bets of the fake site and what its stream tells their owners, as a test plays them."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

Bet = dict[str, Any]


def now_text() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def user_id(address: str) -> str:
    return f"usr_{address[:8]}"


@dataclass
class FakeBets:
    """Bets by address, and one numbered list of events for each.

    `silent`: events happen, but nobody is told. `forgetful`: nothing that was missed is told
    again. Without `knows_cookies` the stream knows only those who introduce themselves.
    """

    balances: dict[str, int]
    bets: dict[str, list[Bet]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    listeners: dict[web.WebSocketResponse, str] = field(default_factory=dict)
    heard: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    epoch: str = "first"
    silent: bool = False
    forgetful: bool = False
    knows_cookies: bool = True

    def place(self, address: str, bet_id: str, body: dict[str, Any]) -> Bet:
        self.balances[address] -= body["amount"]
        bet = {
            "bet_id": bet_id,
            "cell_id": body["cell_id"],
            "amount": body["amount"],
            "status": "pending",
            "reward_rate": None,
            "payout_amount": None,
            "placed_at": now_text(),
            "resolved_at": None,
        }
        self.bets.setdefault(address, []).append(bet)
        return bet

    async def confirm(self, bet_id: str, rate: str) -> None:
        await self._change(bet_id, status="confirmed", reward_rate=rate)

    async def settle(self, bet_id: str, payout: int) -> None:
        """Won, or lost if it pays nothing; cents."""
        status = "won" if payout else "lost"
        await self._change(bet_id, status=status, payout_amount=payout, resolved_at=now_text())
        if payout:
            await self._pay(bet_id, payout)

    async def void(self, bet_id: str, reason: str) -> None:
        self.reasons[bet_id] = reason
        _, bet = self._find(bet_id)
        await self._change(bet_id, status="void", resolved_at=now_text())
        await self._pay(bet_id, bet["amount"])

    async def introduce(self, socket: web.WebSocketResponse, address: str | None) -> None:
        """The stream knows who listens."""
        if address is None:
            await socket.send_json({"type": "error", "code": "unauthenticated", "message": "No."})
            return
        self.listeners[socket] = address
        seq = len(self.events.get(address, []))
        place = {"epoch": self.epoch, "seq": seq}
        await socket.send_json({"type": "authenticated", "user_id": user_id(address), **place})

    async def resume(self, socket: web.WebSocketResponse, said: dict[str, Any]) -> None:
        if self.forgetful or said["epoch"] != self.epoch:
            seq = len(self.events.get(self.listeners[socket], []))
            await socket.send_json({"type": "reset", "epoch": self.epoch, "seq": seq})
            return
        for event in self.events.get(self.listeners[socket], [])[said["seq"] :]:
            await socket.send_json(event)

    def skip(self, count: int) -> None:
        """So many events that nobody can ask for come first from now on."""
        for address in set(self.listeners.values()):
            self.events[address] = [{}] * count

    def page(self, address: str, limit: int, cursor: str | None) -> dict[str, Any]:
        """Newest first; a cursor is how many were shown before."""
        newest = self.bets.get(address, [])[::-1]
        begin = int(cursor or 0)
        more = len(newest) > begin + limit
        return {
            "items": newest[begin : begin + limit],
            "next_cursor": str(begin + limit) if more else None,
            "archived_before": None,
        }

    def one(self, address: str, bet_id: str) -> dict[str, Any] | None:
        for bet in self.bets.get(address, []):
            if bet["bet_id"] == bet_id:
                return {**bet, "evidence": {"void_reason": self.reasons.get(bet_id)}}
        return None

    def _find(self, bet_id: str) -> tuple[str, Bet]:
        [found] = [
            (address, bet)
            for address, bets in self.bets.items()
            for bet in bets
            if bet["bet_id"] == bet_id
        ]
        return found

    async def _change(self, bet_id: str, **fields: Any) -> None:
        address, bet = self._find(bet_id)
        bet.update(fields)
        await self._tell(address, "bet", **bet)

    async def _pay(self, bet_id: str, cents: int) -> None:
        address, _ = self._find(bet_id)
        self.balances[address] += cents
        await self._tell(address, "balance", balance=self.balances[address])

    async def _tell(self, address: str, kind: str, **fields: Any) -> None:
        events = self.events.setdefault(address, [])
        event = {"type": kind, "seq": len(events) + 1, **fields}
        events.append(event)
        if self.silent:
            return
        for socket, listener in list(self.listeners.items()):
            if listener == address and not socket.closed:
                await socket.send_json(event)

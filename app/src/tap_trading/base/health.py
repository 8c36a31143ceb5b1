"""Health of a service: named checks, run together, answered at `/healthz`.

A check is an async callable. It returns a short text ("ok" or what it saw) or raises;
the exception's text becomes the check's answer. Only a failing *vital* check, one the
service cannot work without, makes the whole unhealthy.

Before a new release takes over it has to show more than that: its readiness, at `/readyz`,
has further checks, and none of them may fail.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

Check = Callable[[], Awaitable[str]]

_TIMEOUT_S = 2.0
#: Answers are reused this long, so that a burst of probes costs one round of checks.
_FRESH_S = 0.25


@dataclass(frozen=True, slots=True)
class Report:
    """What the checks said."""

    component: str
    healthy: bool
    checks: dict[str, str]
    failing: tuple[str, ...] = ()  # the names of the checks that failed

    def as_json(self) -> dict[str, object]:
        """The body of `/healthz`."""
        status = "ok" if self.healthy else "unavailable"
        return {"status": status, "component": self.component, "checks": self.checks}


Checks = Mapping[str, tuple[Check, bool]]


class Health:
    """The checks of one service."""

    def __init__(self, component: str) -> None:
        self.component = component
        self._checks: dict[str, tuple[Check, bool]] = {}
        self._readiness: dict[str, tuple[Check, bool]] = {}
        self._last: tuple[float, Report] | None = None
        self._lock = asyncio.Lock()

    def add(self, name: str, check: Check, *, vital: bool = True) -> None:
        """Register a check."""
        self._checks[name] = (check, vital)

    def add_readiness(self, name: str, check: Check) -> None:
        """Register a check that only a release which is to take over has to pass."""
        self._readiness[name] = (check, True)

    async def readiness(self) -> Report:
        """Run all checks there are at once, each with a time limit of 2 s."""
        return await self._report_on({**self._checks, **self._readiness})

    async def report(self) -> Report:
        """Run all checks at once, each with a time limit of 2 s."""
        async with self._lock:
            if self._last and time.monotonic() - self._last[0] < _FRESH_S:
                return self._last[1]
            report = await self._report_on(self._checks)
            self._last = (time.monotonic(), report)
            return report

    async def _report_on(self, checks: Checks) -> Report:
        answers = await asyncio.gather(*(self._run(check) for check, _ in checks.values()))
        texts = dict(zip(checks, (text for _, text in answers), strict=True))
        failing = tuple(name for name, (ok, _) in zip(checks, answers, strict=True) if not ok)
        healthy = not any(checks[name][1] for name in failing)
        return Report(self.component, healthy, texts, failing)

    @staticmethod
    async def _run(check: Check) -> tuple[bool, str]:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return True, await check()
        except TimeoutError:
            return False, f"no answer within {_TIMEOUT_S:g} s"
        except Exception as error:  # whatever a check raises is its answer
            return False, str(error) or type(error).__name__

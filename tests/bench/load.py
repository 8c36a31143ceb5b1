"""A closed-loop HTTP load of prepared requests, cheap enough not to be what is measured."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """What one load saw."""

    statuses: dict[int, int]
    seconds: float
    latencies_ms: list[float]  # sorted
    server_cpu_us: float  # per request

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies_ms) / self.seconds

    def percentile(self, share: float) -> float:
        """Latency in ms that `share` of the requests did not exceed."""
        return self.latencies_ms[
            min(int(len(self.latencies_ms) * share), len(self.latencies_ms) - 1)
        ]


def cpu_seconds(pid: int) -> float:
    """CPU time a process has used, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def closed_loop(port: int, pid: int, requests: list[bytes], connections: int) -> Result:
    """Send every request once, over so many connections, each waiting for its answer."""
    waiting = iter(requests)
    latencies: list[float] = []
    statuses: dict[int, int] = {}

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in waiting:
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            await reader.readexactly(length)
            latencies.append((time.perf_counter() - began) * 1000)
            status = int(head[9:12])
            statuses[status] = statuses.get(status, 0) + 1
        writer.close()
        await writer.wait_closed()

    cpu, began = cpu_seconds(pid), time.perf_counter()
    await asyncio.gather(*(client() for _ in range(connections)))
    seconds = time.perf_counter() - began
    used = cpu_seconds(pid) - cpu
    return Result(statuses, seconds, sorted(latencies), used / len(requests) * 1e6)

"""The machine under test, for tests of behaviour.

`host` is testinfra's view of the machine, `machine` ours: see tests/e2e/site/machine.py.
Mark a test with the units it is about: when it fails, their journal is printed.
"""

import asyncio
import functools
import itertools
import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector, WSMsgType
from base58 import b58encode
from nacl.signing import SigningKey
from testinfra.host import Host

from e2e.site import releases
from e2e.site.machine import ROOT, Machine, add_journal

PROBES = Path(__file__).parent / "probes"
INVENTORIES = {"tap-molecule": "molecule/default/inventory", "tap-vm": "inventory/local"}
MEASURED = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "units(*names): print their journal when the test fails")
    config.stash[MEASURED] = []
    # One login serves all commands of testinfra too.
    name = (config.getoption("hosts") or "").removeprefix("ssh://")
    if name in INVENTORIES and not config.getoption("ssh_extra_args"):
        config.option.ssh_extra_args = " ".join(Machine(name).shared_connection)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    add_journal(report, item, call.duration)
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash[MEASURED]:
        terminalreporter.section("measured")
        for line in config.stash[MEASURED]:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest) -> Machine:
    """The machine of scripts/vm.sh that --hosts names; never the host the tests run on."""
    spec = request.config.getoption("hosts") or ""
    name = spec.removeprefix("ssh://")
    if name == spec or name not in INVENTORIES:
        pytest.exit(
            "these tests break and mend a machine: name it with --hosts=ssh://tap-molecule"
            " --ssh-config=.vm/tap-molecule/ssh_config --sudo",
            returncode=2,
        )
    return Machine(name)


@pytest.fixture(autouse=True)
def _only_on_the_machine(machine: Machine) -> None:
    """Even a test that asks only testinfra must never look at the host it runs on."""


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Write a figure into the summary at the end."""
    return request.config.stash[MEASURED].append


@pytest.fixture
def probe(machine: Machine) -> Callable[..., Any]:
    """Run a script of probes/ on the machine with its own Python, as root; its JSON answer."""

    return functools.partial(probe_of, machine)


def probe_of(machine: Machine, name: str, *arguments: object, timeout: float = 120) -> Any:
    words = " ".join(str(argument) for argument in arguments)
    source = (PROBES / f"{name}.py").read_text()
    return json.loads(machine.run(f"python3 - {words}", timeout=timeout, stdin=source))


@pytest.fixture
def inventory(machine: Machine) -> str:
    """Where Ansible finds the machine."""
    return INVENTORIES[machine.name]


@pytest.fixture
def playbook(inventory: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a playbook against the machine, as an op would."""

    def run(name: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).with_name("ansible-playbook")
        # Molecule asks for colours and its own configuration; an op's shell does not.
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "MOLECULE_"))}
        return subprocess.run(
            [program, "-i", inventory, f"playbooks/{name}", *arguments],
            cwd=ROOT,
            env=plain,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def deploy(
    playbook: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Deploy an artifact, as an op would."""

    def run(artifact: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return playbook("deploy.yml", "-e", f"release_artifact={artifact}", *arguments)

    return run


@pytest.fixture(scope="session")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a checkout that differs in one line."""
    checkout = tmp_path_factory.mktemp("another") / "checkout"
    return releases.build(checkout, {"app/src/tap_trading/__init__.py": "# another build\n"})


@dataclass(frozen=True)
class Cell:
    """A cell: its window in Unix seconds, its band in cents."""

    start: int
    width: int
    low: int
    high: int

    @classmethod
    def read(cls, cell_id: str) -> "Cell":
        """From its id."""
        return cls(*map(int, cell_id.split(":")[1:]))

    @property
    def cell_id(self) -> str:
        """Its id."""
        return f"btc-usd:{self.start}:{self.width}:{self.low}:{self.high}"

    @property
    def end(self) -> int:
        """When its column is over."""
        return self.start + self.width


@dataclass
class Answer:
    """What came back over HTTP."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


#: The site's services and their ports.
SERVICES = ("api", "ws", "price", "resolver")
PORTS = (8080, 8081, 8090, 8091)
#: The site as the machine itself reaches it.
BASE = "http://127.0.0.1"


@dataclass
class Site:
    """The site as asked from inside the machine."""

    machine: Machine
    #: Nginx counts requests per address: each comes from another one.
    _sources: Iterator[str] = field(
        default_factory=lambda: (
            f"127.{time.time_ns() // 1_000_000_000 % 250 + 1}.{n // 250 % 250}.{n % 250 + 1}"
            for n in itertools.count()
        )
    )

    def get(self, url: str, *options: str) -> Answer:
        """GET with curl."""
        words = " ".join(options)
        raw = self.machine.run(
            "curl --silent --show-error --insecure --include --max-time 10"
            f" --interface {next(self._sources)} {words} '{url}'"
        )
        head, _, body = raw.replace("\r\n", "\n").partition("\n\n")
        first, *lines = head.splitlines()
        headers = dict(line.split(": ", 1) for line in lines)
        return Answer(
            int(first.split()[1]), {name.lower(): text for name, text in headers.items()}, body
        )

    def post(self, path: str, body: object, *options: str, base: str = BASE) -> Answer:
        """POST a JSON body."""
        return self.get(
            f"{base}{path}",
            *("--header", "'Content-Type: application/json'", *options),
            *("--data-binary", f"'{json.dumps(body)}'"),
        )

    def sign_in(self, wallet: SigningKey | None = None) -> str:
        """Sign a wallet in, a new one unless it is given; returns its token."""
        wallet = wallet or SigningKey.generate()
        address = b58encode(bytes(wallet.verify_key)).decode()
        asked = self.post("/api/auth/challenge", {"address": address}).json
        signature = b58encode(wallet.sign(asked["message"].encode()).signature).decode()
        answer = self.post(
            "/api/auth/verify",
            {"address": address, "nonce": asked["nonce"], "signature": signature},
        )
        assert answer.status == 200, answer.text
        return str(answer.json["token"])

    @functools.cached_property
    def token(self) -> str:
        """The token of the wallet that these tests share."""
        return self.sign_in()

    @property
    def bearer(self) -> tuple[str, str]:
        """Options that make a request this wallet's."""
        return ("--header", f"'Authorization: Bearer {self.token}'")

    def look_up(self, bet_id: str) -> Any:
        """What this wallet is told of one of its bets."""
        answer = self.get(f"{BASE}/api/bets/{bet_id}", *self.bearer)
        assert answer.status == 200, answer.text
        return answer.json

    def wait_for_status(self, bet_id: str, *statuses: str, until: float) -> Any:
        """Wait until a bet has one of these; what its owner is told then. `until` is Unix time."""
        while (bet := self.look_up(bet_id))["status"] not in statuses:
            assert time.time() < until, f"not {' or '.join(statuses)} in time: {bet}"
            time.sleep(0.3)  # a wallet may ask 300 times a minute
        return bet

    def even_cell(self, seconds: float = 3) -> Cell:
        """The cell of the soonest column, open for so long still, whose rate is nearest to 2."""
        market = self.get(f"{BASE}/api/market").json
        rates = {Cell.read(cell["cell_id"]): cell["reward_rate"] for cell in market["cells"]}
        # A column closes when the one before it begins to be the next: two widths early.
        open_ones = [c for c in rates if c.start - 2 * c.width > time.time() + seconds]
        soonest = min(cell.start for cell in open_ones)
        column = [cell for cell in open_ones if cell.start == soonest]
        return min(column, key=lambda cell: abs(float(rates[cell]) - 2))

    def bet(self, cell_id: str, key: str, amount: int = 500, base: str = BASE) -> Answer:
        """Place a bet."""
        body = {"cell_id": cell_id, "amount": amount}
        options = (*self.bearer, "--header", f"'Idempotency-Key: {key}'")
        return self.post("/api/bets", body, *options, base=base)

    def wait_until_healthy(self, seconds: float = 30) -> None:
        """Wait for the API to say through Nginx that it is well."""
        end = time.monotonic() + seconds
        while True:
            done = self.machine.attempt(
                f"curl --fail --silent --max-time 5 --interface {next(self._sources)}"
                " http://127.0.0.1/api/healthz"
            )
            if done.returncode == 0:
                return
            assert time.monotonic() < end, f"not healthy after {seconds:g} s: {done.stdout}"
            time.sleep(0.2)

    def wait_until_open(self, seconds: float = 120) -> None:
        """Wait until bets are taken: after an outage prices have to be stable for 30 s first, and
        on a new machine there have to be 60 s of them.
        """
        end = time.monotonic() + seconds
        while True:
            done = self.machine.attempt(
                f"curl --fail --silent --max-time 5 --interface {next(self._sources)}"
                " http://127.0.0.1/api/market"
            )
            if done.returncode == 0 and json.loads(done.stdout)["state"] == "open":
                return
            assert time.monotonic() < end, f"not open after {seconds:g} s: {done.stdout[:500]}"
            time.sleep(0.5)


@pytest.fixture(scope="session")
def site(machine: Machine) -> Site:
    """The site as asked from inside the machine."""
    return Site(machine)


@pytest.fixture
def live_release(machine: Machine, site: Site) -> Callable[[], str]:
    """The version that is live under every name, alone, with nothing under way and nothing left."""

    def look() -> str:
        seen = probe_of(machine, "releases")
        version, [live, idle] = seen["current"], seen["colours"]
        assert seen["links"] == {live: version, idle: None}, seen
        assert seen["live"] == [f"tap-trading-{name}-{live}.service" for name in SERVICES], seen
        assert seen["idle"] == ["inactive"] * len(SERVICES), seen
        assert seen["left"] == [], seen
        for port in PORTS:
            assert site.get(f"http://127.0.0.1:{port}/version").json["version"] == version
        assert site.get(f"{BASE}/api/version").json["version"] == version
        site.wait_until_healthy()
        return str(version)

    return look


@pytest.fixture
def serving(machine: Machine) -> Callable[..., AbstractContextManager[None]]:
    """While it lasts, the site is asked all the time; `perfect`: and must always have answered."""

    @contextmanager
    def watch(*, perfect: bool = True) -> Iterator[None]:
        machine.run("cat > /run/tap-serving.py", stdin=(PROBES / "serving.py").read_text())
        with subprocess.Popen(
            ["ssh", "-F", machine.ssh_config, machine.name, "sudo python3 /run/tap-serving.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout
            try:
                assert process.stdout.readline() == "ready\n"
                yield
                seen = json.loads(process.communicate(timeout=60)[0])
            finally:
                process.kill()
        assert min(seen["asked"].values()) > 20, seen
        assert not perfect or seen["failures"] == [], seen

    return watch


@dataclass
class Stream:
    """The stream as a browser on this host sees it, through Nginx."""

    machine: Machine

    async def messages(self, *types: str, base: str = "", seconds: float = 5) -> list[Any]:
        """Connect and wait for the first message of each type, in the order they come."""
        url = f"{base or self.machine.http}/ws"
        wanted, found = set(types), []
        async with (
            ClientSession(connector=TCPConnector(ssl=False)) as session,
            session.ws_connect(url) as socket,
        ):
            while wanted:
                message = await socket.receive(timeout=seconds)
                assert message.type is WSMsgType.TEXT, message
                content = json.loads(message.data)
                if content["type"] in wanted:
                    wanted.remove(content["type"])
                    found.append(content)
        return found

    async def open_cells(self, seconds: float = 15) -> list[str]:
        """Cells near the price that take bets for at least this long."""
        [hello] = await self.messages("hello")
        cells = [cell["cell_id"] for cell in hello["grid"]["cells"]]
        price = hello["price"]["price"]
        # A column closes when the one before it begins to be the next: two widths early.
        until = time.time() + seconds

        def stays_open(cell_id: str) -> bool:
            cell = Cell.read(cell_id)
            middle, height = (cell.low + cell.high) / 2, cell.high - cell.low
            return cell.start - 2 * cell.width > until and abs(middle - price) < 4 * height

        return [cell_id for cell_id in cells if stays_open(cell_id)]


@pytest.fixture(scope="session")
def stream(machine: Machine) -> Stream:
    """The stream as a browser on this host sees it."""
    return Stream(machine)


@pytest.fixture
def place_bet(site: Site, stream: Stream) -> Callable[..., Answer]:
    """Place a bet on a cell that is open and free."""
    taken: set[str] = set()

    def place(key: str = "", amount: int = 500) -> Answer:
        site.wait_until_open()
        for _ in range(3):
            cells = [cell for cell in asyncio.run(stream.open_cells()) if cell not in taken]
            cell = random.choice(cells)
            taken.add(cell)
            answer = site.bet(cell, key or str(uuid.uuid4()), amount)
            if answer.status != 409:
                break
        return answer

    return place


@pytest.fixture
def systemd(host: Host) -> Callable[..., dict[str, str]]:
    """Properties of a unit."""

    def show(unit: str, *names: str) -> dict[str, str]:
        asked = " ".join(f"--property={name}" for name in names)
        lines = host.check_output(f"systemctl show {asked} '{unit}'").splitlines()
        return dict(line.split("=", 1) for line in lines)

    return show

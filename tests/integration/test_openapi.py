"""The OpenAPI document and the API say the same."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient
from jsonschema import Draft202012Validator
from nacl.signing import SigningKey
from referencing import Registry
from referencing.jsonschema import DRAFT202012
from tests.conftest import ROOT, RedisServer
from tests.integration.conftest import Serve
from tests.integration.signed_in import Trader, live_price, sign_in

from tap_trading.auth import base58
from tap_trading.base import version
from tap_trading.base.redis import Redis
from tap_trading.ledger import queries
from tap_trading.ledger.placing import Refusal
from tap_trading.services import api, openapi

HERE = Path(__file__).parent
METHODS = ("get", "post", "put", "patch", "delete", "options")
#: What Nginx refuses before there is a call: requests that it cannot read as HTTP.
BEFORE_ANY_CALL = {(501, "not_implemented"), (505, "http_version_not_supported")}

Refusals = set[tuple[int, str]]


class Contract:
    """The document, as a judge of answers."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        resource = DRAFT202012.create_resource(document)
        self._registry = Registry().with_resource("urn:contract", resource)
        self.seen: set[tuple[str, str, int, str]] = set()  # path, method, status, code

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for path, item in self.document["paths"].items():
            for method, operation in item.items():
                yield path, method, operation

    def resolve(self, found: dict[str, Any]) -> dict[str, Any]:
        """What a reference stands for; anything else is itself."""
        while "$ref" in found:
            target: Any = self.document
            for name in found["$ref"].removeprefix("#/").split("/"):
                target = target[name]
            found = target
        return found

    def refusals(self, operation: dict[str, Any]) -> Refusals:
        """The statuses and codes of all problems of a call."""
        found: Refusals = set()
        for status, named in operation["responses"].items():
            content = self.resolve(named).get("content", {})
            for part in (
                content.get("application/problem+json", {}).get("schema", {}).get("allOf", ())
            ):
                code = part.get("properties", {}).get("code", {})
                found |= {
                    (int(status), each) for each in code.get("enum", [code.get("const")]) if each
                }
        return found

    def validate(self, schema: dict[str, Any], value: object) -> None:
        anchored = orjson.loads(orjson.dumps(schema).replace(b'"#/', b'"urn:contract#/'))
        Draft202012Validator(anchored, registry=self._registry).validate(value)

    async def check(self, answer: ClientResponse, path: str) -> dict[str, Any]:
        """Hold an answer to what the document says of it. Returns its body."""
        method = answer.method.lower()
        operation = self.document["paths"][path].get(method)
        if operation is None:  # a method that the path does not take
            operation = next(iter(self.document["paths"][path].values()))
            assert answer.status == 405
        assert str(answer.status) in operation["responses"], await answer.text()
        said = self.resolve(operation["responses"][str(answer.status)])
        for name, named in said.get("headers", {}).items():
            header = self.resolve(named)
            assert name in answer.headers or not header["required"], name
            if name in answer.headers:
                text = answer.headers[name]
                number = self.resolve(header["schema"]).get("type") == "integer"
                self.validate(header["schema"], int(text) if number else text)
        if "content" not in said:
            assert not await answer.read()
            self.seen.add((path, method, answer.status, ""))
            return {}
        body = dict(await answer.json())
        self.validate(said["content"][answer.content_type]["schema"], body)
        self.seen.add((path, method, answer.status, body.get("code", "")))
        return body


@pytest.fixture
def contract() -> Contract:
    return Contract(openapi.document())


@pytest.fixture
async def client(serve: Serve, redis: Redis) -> AsyncIterator[TestClient]:
    """The API with a live price, and stakes that nobody can afford twice or at all."""
    settings = {"TAP_STAKES": "100,60000,2000000", "TAP_WALLET_RATE": "1000000"}
    async with serve(api.build, **settings) as client, live_price(client, redis):
        yield client


async def test_the_document_is_served_with_the_builds_version(client: TestClient) -> None:
    document = await (await client.get("/api/openapi.json")).json()
    assert document == openapi.document()
    assert document["info"]["version"] == version.current().version


async def test_it_has_exactly_the_applications_routes(
    client: TestClient, contract: Contract
) -> None:
    server: Any = client.server
    routes = {
        (route.resource.canonical, route.method.lower())
        for route in server.app.router.routes()
        if route.resource.canonical.startswith("/api/") and route.method != "HEAD"
    }
    assert routes == {(path, method) for path, method, _ in contract.operations()}


def test_every_call_has_what_all_calls_have(contract: Contract) -> None:
    names = [operation["operationId"] for _, _, operation in contract.operations()]
    assert len(set(names)) == len(names)
    for path, method, operation in contract.operations():
        statuses = set(operation["responses"])
        assert statuses >= {"400", "405", "414", "429", "431", "500", "503"}, path
        assert ("413" in statuses) == (method == "post"), path
        assert ("401" in statuses) == ("security" in operation or path == "/api/auth/verify"), path
        for named in operation["responses"].values():
            response = contract.resolve(named)
            assert "X-Request-ID" in response["headers"], path
        for status in ("429", "503"):
            headers = contract.resolve(operation["responses"][status])["headers"]
            assert "Retry-After" in headers or path == "/api/healthz"


def test_objects_are_closed_and_examples_are_valid(contract: Contract) -> None:
    for name, schema in contract.document["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        if schema["type"] == "object":
            assert schema["additionalProperties"] is False, name
            assert set(schema["required"]) <= set(schema["properties"]), name
        for example in schema.get("examples", ()):
            contract.validate(schema, example)
        for part in schema.get("properties", {}).values():
            for example in part.get("examples", ()):
                contract.validate(part, example)


def test_it_repeats_the_codes_numbers_and_patterns_of_the_code(contract: Contract) -> None:
    schemas = contract.document["components"]["schemas"]
    assert schemas["BetCursor"]["pattern"] == queries.BET_CURSORS.pattern
    assert schemas["LedgerCursor"]["pattern"] == queries.ENTRY_CURSORS.pattern
    assert tuple(schemas["BetStatus"]["enum"]) == queries.STATUSES
    limit = contract.document["components"]["parameters"]["Limit"]["schema"]
    assert (limit["maximum"], limit["default"]) == (queries.LARGEST_PAGE, queries.USUAL_PAGE)

    documented = {
        refusal
        for _, _, operation in contract.operations()
        for refusal in contract.refusals(operation)
    }
    assert {code for _, code in documented} == _codes_of_the_api() | {
        code for _, code in _nginx_refusals() - BEFORE_ANY_CALL
    }
    assert documented >= _nginx_refusals() - BEFORE_ANY_CALL


def _codes_of_the_api() -> set[str]:
    """The codes of the API's problems, as its sources have them."""
    found = {refusal.value for refusal in Refusal}
    for source in (ROOT / "app/src/tap_trading/services").glob("*.py"):
        if source.name != "ws.py":
            text = source.read_text()
            found |= set(re.findall(r'ProblemError\(\s*[^,()]+,\s*"([a-z_]+)"', text))
            found |= set(re.findall(r'^    [45][0-9]{2}: "([a-z_]+)",$', text, re.MULTILINE))
    return found


def _nginx_refusals() -> Refusals:
    """The problems that Nginx answers under /api itself."""
    variables = yaml.safe_load((ROOT / "roles/nginx/vars/main.yml").read_text())
    return {(problem["status"], problem["code"]) for problem in variables["_nginx_problems"]}


async def test_answers_are_as_documented(client: TestClient, contract: Contract) -> None:
    for path in ("/api/healthz", "/api/version", "/api/openapi.json", "/api/market"):
        await contract.check(await client.get(path), path)
    for path in contract.document["paths"]:
        for method in METHODS:
            if method not in contract.document["paths"][path]:
                await contract.check(await client.request(method, path.format(id="x")), path)
    await _sign_in_and_out(client, contract)
    await _bet_and_read(client, contract)

    answered = {(status, code) for _, _, status, code in contract.seen}
    missing = {
        (status, code)
        for _, _, operation in contract.operations()
        for status, code in contract.refusals(operation) - answered
        # Haste and outages are another test's, and so is what Nginx says.
        if status < 500 and (status, code) not in _nginx_refusals()
    }
    assert not missing


async def _sign_in_and_out(client: TestClient, contract: Contract) -> None:
    key = SigningKey.generate()
    address = base58.encode(bytes(key.verify_key))
    challenge, verify, logout = (f"/api/auth/{name}" for name in ("challenge", "verify", "logout"))

    async def post(path: str, **body: str) -> dict[str, Any]:
        return await contract.check(await client.post(path, json=body), path)

    async def attempt(signer: SigningKey) -> dict[str, Any]:
        asked = await post(challenge, address=address)
        signature = base58.encode(signer.sign(asked["message"].encode()).signature)
        return await post(verify, address=address, nonce=asked["nonce"], signature=signature)

    assert (await post(challenge))["code"] == "malformed"
    assert (await post(verify))["code"] == "malformed"
    assert (await attempt(SigningKey.generate()))["code"] == "bad_signature"
    stale = await post(verify, address=address, nonce="A" * 22, signature="1" * 64)
    assert stale["code"] == "bad_nonce"
    assert (await post(logout))["code"] == "unauthenticated"
    token = (await attempt(key))["token"]
    headers = {"Authorization": f"Bearer {token}"}
    await contract.check(await client.post(logout, headers=headers), logout)
    client.session.cookie_jar.clear()


async def _bet_and_read(client: TestClient, contract: Contract) -> None:
    trader = await sign_in(client)
    market = await (await client.get("/api/market")).json()
    # Of the last column, which is open for another half minute.
    a, b, c, d = (cell["cell_id"] for cell in market["cells"][-4:])
    symbol, start, band = a.split(":", 2)
    for cell_id, amount, key, code in (
        (a, 100, "key-1", None),
        (a, 100, "key-1", None),
        (a, 60_000, "key-1", "idempotency_key_reused"),
        (a, 100, "key-2", "duplicate_cell"),
        (b, 60_000, "key-3", None),
        (c, 60_000, "key-4", "insufficient_funds"),
        (d, 2_000_000, "key-5", "limit_exceeded"),
        (d, 99, "key-5", "invalid_amount"),
        (f"{d}0", 100, "key-5", "unknown_cell"),
        (f"{symbol}:{int(start) - 60}:{band}", 100, "key-5", "cell_closed"),
        (d, 100, "", "missing_idempotency_key"),
        (d, 100, "x" * 65, "malformed"),
    ):
        answer = await trader.bet(cell_id, amount, key)
        assert (await contract.check(answer, "/api/bets")).get("code") == code
    large = await client.post("/api/bets", data=b" " * 20_000, headers=trader.headers)
    assert (await contract.check(large, "/api/bets"))["code"] == "payload_too_large"
    anonymous = Trader(client, "", "", "wrong")
    assert (await contract.check(await anonymous.bet("", 1, "k"), "/api/bets"))["status"] == 401

    page = await contract.check(await trader.get("/api/bets", limit="1"), "/api/bets")
    await contract.check(await trader.get("/api/bets", cursor=page["next_cursor"]), "/api/bets")
    page = await contract.check(await trader.get("/api/ledger", limit="1"), "/api/ledger")
    await contract.check(await trader.get("/api/ledger", cursor=page["next_cursor"]), "/api/ledger")
    bet_id = (await trader.json("/api/bets"))["items"][0]["bet_id"]
    for path, params in (
        ("/api/me", {}),
        ("/api/market", {}),
        (f"/api/bets/{bet_id}", {}),
        ("/api/bets/bet_none", {}),
        ("/api/bets", {"limit": "0"}),
        ("/api/ledger", {"limit": "0"}),
        ("/api/me", {"x": "1"}),
        ("/api/market", {"x": "1"}),
    ):
        documented = re.sub(r"/bet_.*", "/{id}", path)
        await contract.check(await trader.get(path, **params), documented)
        if path != "/api/market":
            await contract.check(await anonymous.get(path, **params), documented)


async def test_outages_are_as_documented(
    serve: Serve, contract: Contract, redis_server: RedisServer
) -> None:
    async with serve(api.build, TAP_WALLET_RATE="1") as client:
        trader = await sign_in(client)
        stale = await trader.bet("btc-usd:1764000000:5:0:1000", 100, "key-1")
        assert (await contract.check(stale, "/api/bets"))["code"] == "feed_stale"
        hasty = await trader.bet("btc-usd:1764000000:5:0:1000", 100, "key-1")
        assert (await contract.check(hasty, "/api/bets"))["code"] == "rate_limited"
        await contract.check(await client.get("/api/market"), "/api/market")

        redis_server.stop()
        await asyncio.sleep(0.3)  # a health report is reused for a quarter of a second
        sick = await contract.check(await client.get("/api/healthz"), "/api/healthz")
        assert sick["status"] == "unavailable"
        body = {"address": trader.address}
        answer = await client.post("/api/auth/challenge", json=body)
        assert (await contract.check(answer, "/api/auth/challenge"))["code"] == "unavailable"
        stranger = Trader(client, "", "", "A" * 43)
        for path in ("/api/me", "/api/bets", "/api/ledger"):
            answer = await stranger.get(path)
            assert (await contract.check(answer, path))["code"] == "unavailable"


async def test_schemathesis_finds_nothing(serve: Serve, redis: Redis, tmp_path: Path) -> None:
    """Hundreds of right and wrong requests of every call, each answer held to the document."""
    async with serve(api.build, TAP_WALLET_RATE="1000000") as client, live_price(client, redis):
        status, report = await _schemathesis(client, tmp_path)
    assert status == 0, report
    calls = len(list(Contract(openapi.document()).operations()))
    assert f"{calls} selected / {calls} total" in report, report


async def _schemathesis(client: TestClient, folder: Path) -> tuple[int | None, str]:
    """Let it loose on the API as a signed-in trader; its exit status and report."""
    document = await (await client.get("/api/openapi.json")).json()
    # What fits this pattern need not be 32 bytes. The format is exact, so here it stands alone.
    address = document["components"]["schemas"]["Address"]
    for loose in ("pattern", "minLength", "maxLength"):
        del address[loose]
    # From a file: it would not test the call that it read the document from.
    (folder / "openapi.json").write_bytes(orjson.dumps(document))
    trader, leaver = await sign_in(client), await sign_in(client)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
        *("--config-file", str(HERE / "schemathesis.toml"), "run", "openapi.json"),
        *("--url", str(client.make_url("")), "--checks", "all", "--no-color"),
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT / "app" / "src"),
            "SCHEMATHESIS_HOOKS_FILE": str(HERE / "schemathesis_hooks.py"),
            "TAP_TOKEN": trader.token,
            "TAP_TOKEN_TO_END": leaver.token,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(180):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, output.decode()

"""What every HTTP service shares: request ids, one log line and one measurement per
request, problem+json for everything that is not an answer, and the three common routes.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import orjson
import structlog
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from tap_trading.base import logger, metrics, version
from tap_trading.base.errors import ProblemError
from tap_trading.base.health import Health

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HEALTH: web.AppKey[Health] = web.AppKey("health", Health)
METRICS_DIR: web.AppKey[Path] = web.AppKey("metrics_dir", Path)
REQUEST_ID = web.RequestKey("request_id", str)

PROBLEM_JSON = "application/problem+json"

#: A request id is taken over from Nginx only in our own form.
_REQUEST_ID = re.compile(r"req_[A-Za-z0-9_\-]{1,64}")

#: Routes that are asked every few seconds; at debug level only, they would bury the rest.
_QUIET = frozenset({"/healthz", "/readyz", "/metrics", "/api/healthz"})

_CODES = {
    400: "malformed",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    500: "internal",
}


def json_response(body: object, *, status: int = 200) -> web.Response:
    """An answer with a JSON body."""
    return web.Response(
        body=orjson.dumps(body), status=status, content_type="application/json", charset="utf-8"
    )


def request_id(given: str) -> str:
    """The id that Nginx gave the request, or a new one."""
    return given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(8)}"


def problem_body(problem: ProblemError, request_id: str) -> bytes:
    """A problem as RFC 9457 has it, with our stable `code`."""
    return orjson.dumps(
        {
            "type": f"urn:tap-trading:problem:{problem.code}",
            "title": HTTPStatus(problem.status).phrase,
            "status": problem.status,
            "detail": problem.detail,
            "code": problem.code,
            "request_id": request_id,
        }
    )


def problem_response(request: web.Request, problem: ProblemError) -> web.Response:
    """The answer to a request that met a problem."""
    response = web.Response(
        body=problem_body(problem, request[REQUEST_ID]),
        status=problem.status,
        content_type=PROBLEM_JSON,
        charset="utf-8",
    )
    if problem.retry_after_s is not None:
        response.headers["Retry-After"] = str(problem.retry_after_s)
    return response


def _problem_of(error: web.HTTPException, request: web.Request) -> ProblemError:
    details = {
        404: f"There is nothing at {request.path}.",
        405: f"{request.path} does not take {request.method}.",
        413: "The body is larger than 16 KB.",
    }
    code = _CODES.get(error.status, "http_error")
    return ProblemError(error.status, code, details.get(error.status, error.reason))


@web.middleware
async def request_context(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id, log it and measure it."""
    id_ = request_id(request.headers.get("X-Request-ID", ""))
    request[REQUEST_ID] = id_
    began = time.perf_counter()
    with structlog.contextvars.bound_contextvars(request_id=id_):
        response = await handler(request)
        seconds = time.perf_counter() - began
        if response.status != HTTPStatus.SWITCHING_PROTOCOLS:
            resource = request.match_info.route.resource
            route = resource.canonical if resource else "unmatched"
            metrics.HTTP_SECONDS.labels(request.method, route, response.status).observe(seconds)
        log = logger.get()
        (log.debug if request.path in _QUIET else log.info)(
            "request",
            method=request.method,
            path=request.path,
            status=response.status,
            ms=round(seconds * 1000, 2),
            remote=request.headers.get("X-Real-IP", request.remote),
        )
    if not response.prepared:
        response.headers["X-Request-ID"] = id_
    return response


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every failure into a problem; an unexpected one is logged with its traceback."""
    try:
        return await handler(request)
    except ProblemError as problem:
        return problem_response(request, problem)
    except (web.RequestPayloadError, BadHttpMessage, ConnectionError) as error:
        # The client's doing: it went away in the middle, or its body is not what it says it is.
        detail = f"The body could not be read: {error}."
        return problem_response(request, ProblemError(400, "malformed", detail))
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        response = problem_response(request, _problem_of(error, request))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception:
        metrics.ERRORS.labels("request").inc()
        logger.get().exception("request failed", method=request.method, path=request.path)
        return problem_response(
            request,
            ProblemError(500, "internal", "Something broke on our side; nothing was changed."),
        )


class CrossOrigin:
    """Which other origins' pages may call the API, and what their browsers are told."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._allowed = frozenset(origins)

    def headers(self, origin: str) -> dict[str, str]:
        """Headers of an answer to a page of `origin` ("" when the request names none)."""
        if not self._allowed:
            return {}
        if origin not in self._allowed:
            return {"Vary": "Origin"}
        return {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Credentials": "true",
            "Access-Control-Expose-Headers": "X-Request-ID, Retry-After",
        }

    def preflight(self, origin: str) -> web.Response:
        """The answer to a browser that asks before it sends."""
        response = web.Response(status=204)
        if origin in self._allowed:
            response.headers["Access-Control-Allow-Methods"] = "GET, POST"
            response.headers["Access-Control-Allow-Headers"] = (
                "Authorization, Content-Type, Idempotency-Key"
            )
            response.headers["Access-Control-Max-Age"] = "600"
        return response


def cors(policy: CrossOrigin) -> Any:
    """Middleware that lets pages of the allowed origins call the API."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin", "")
        wanted = request.headers.get("Access-Control-Request-Method")
        response: web.StreamResponse
        if request.method == "OPTIONS" and wanted is not None:
            response = policy.preflight(origin)
        else:
            response = await handler(request)
        if not response.prepared:
            response.headers.extend(policy.headers(origin))
        return response

    return middleware


async def healthz(request: web.Request) -> web.Response:
    """200 while the service can do its work, else 503."""
    report = await request.app[HEALTH].report()
    return json_response(report.as_json(), status=200 if report.healthy else 503)


async def readyz(request: web.Request) -> web.Response:
    """200 when a release may take over, as far as this service can tell, else 503.

    The body is that of `/healthz` with the build's `version` and the names of the `failing` checks.
    """
    report = await request.app[HEALTH].readiness()
    body = {
        **report.as_json(),
        "version": version.current().version,
        "failing": report.failing,
    }
    return json_response(body, status=503 if report.failing else 200)


async def show_version(_request: web.Request) -> web.Response:
    """Which build answers."""
    return json_response(version.current().as_json())


async def show_metrics(request: web.Request) -> web.Response:
    """Prometheus text; on the service's own port only, Nginx does not pass it on."""
    folder = request.app.get(METRICS_DIR)
    body = await asyncio.to_thread(metrics.exposition, folder)
    return web.Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE})


def application(
    health: Health, *, cross_origin: CrossOrigin | None = None, metrics_dir: Path | None = None
) -> web.Application:
    """An application with the middlewares and routes that every service has.

    Its metrics are followed by those in the files of `metrics_dir`.
    """
    app = web.Application(
        middlewares=[request_context, cors(cross_origin or CrossOrigin(())), problems],
        client_max_size=16 * 1024,
    )
    app[HEALTH] = health
    if metrics_dir is not None:
        app[METRICS_DIR] = metrics_dir
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/version", show_version)
    app.router.add_get("/metrics", show_metrics)
    return app

"""What every HTTP service shares: request ids, one log line and one measurement per
request, problem+json for everything that is not an answer, and the three common routes.
"""

import re
import secrets
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
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
REQUEST_ID = web.RequestKey("request_id", str)

#: A request id is taken over from Nginx only in our own form.
_REQUEST_ID = re.compile(r"req_[A-Za-z0-9_\-]{1,64}")

#: Routes that are asked every few seconds; at debug level only, they would bury the rest.
_QUIET = frozenset({"/healthz", "/metrics", "/api/healthz"})

_CODES = {
    400: "malformed",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    500: "internal",
}


def json_response(
    body: object, *, status: int = 200, content_type: str = "application/json"
) -> web.Response:
    """An answer with a JSON body."""
    return web.Response(
        body=orjson.dumps(body), status=status, content_type=content_type, charset="utf-8"
    )


def problem_response(request: web.Request, problem: ProblemError) -> web.Response:
    """A problem as RFC 9457 has it, with our stable `code`."""
    response = json_response(
        {
            "type": f"urn:tap-trading:problem:{problem.code}",
            "title": HTTPStatus(problem.status).phrase,
            "status": problem.status,
            "detail": problem.detail,
            "code": problem.code,
            "request_id": request[REQUEST_ID],
        },
        status=problem.status,
        content_type="application/problem+json",
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
    given = request.headers.get("X-Request-ID", "")
    request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(8)}"
    request[REQUEST_ID] = request_id
    began = time.perf_counter()
    with structlog.contextvars.bound_contextvars(request_id=request_id):
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
        response.headers["X-Request-ID"] = request_id
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


def cors(origins: tuple[str, ...]) -> Any:
    """Middleware that lets pages of exactly these origins call the API."""
    allowed = frozenset(origins)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin", "")
        wanted = request.headers.get("Access-Control-Request-Method")
        if request.method == "OPTIONS" and wanted is not None:
            response: web.StreamResponse = web.Response(status=204)
            if origin in allowed:
                response.headers["Access-Control-Allow-Methods"] = "GET, POST"
                response.headers["Access-Control-Allow-Headers"] = (
                    "Authorization, Content-Type, Idempotency-Key"
                )
                response.headers["Access-Control-Max-Age"] = "600"
        else:
            response = await handler(request)
        if response.prepared:
            return response
        if allowed:
            response.headers.add("Vary", "Origin")
        if origin in allowed:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Allow-Credentials"] = "true"
            response.headers["Access-Control-Expose-Headers"] = "X-Request-ID, Retry-After"
        return response

    return middleware


async def healthz(request: web.Request) -> web.Response:
    """200 while the service can do its work, else 503."""
    report = await request.app[HEALTH].report()
    return json_response(report.as_json(), status=200 if report.healthy else 503)


async def show_version(_request: web.Request) -> web.Response:
    """Which build answers."""
    return json_response(version.current().as_json())


async def show_metrics(_request: web.Request) -> web.Response:
    """Prometheus text; on the service's own port only, Nginx does not pass it on."""
    return web.Response(body=metrics.exposition(), headers={"Content-Type": metrics.CONTENT_TYPE})


def application(health: Health, *, origins: tuple[str, ...] = ()) -> web.Application:
    """An application with the middlewares and routes that every service has."""
    app = web.Application(
        middlewares=[request_context, cors(origins), problems], client_max_size=16 * 1024
    )
    app[HEALTH] = health
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/version", show_version)
    app.router.add_get("/metrics", show_metrics)
    return app

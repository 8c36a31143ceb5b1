"""nginx.conf, the site, the unit's drop-in and the log rotation: what they mean, not how they look."""

from __future__ import annotations

import configparser
import json
import re
from typing import Any

import pytest

from templates.nginx_config import Directive, parse
from templates.render import accepts, evaluate, render

SECURITY_HEADERS = {
    "Content-Security-Policy",
    "Cross-Origin-Opener-Policy",
    "Permissions-Policy",
    "Referrer-Policy",
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
}
BETS = "/run/tap-trading-bets.sock"
HTTPS_MAP = ("$scheme$uri", "$tap_to_https")


def site(**overrides: Any) -> Directive:
    return parse(render("nginx", "tap-trading.j2", **overrides))


def server(**overrides: Any) -> Directive:
    return site(**overrides).one("server")


def main(**overrides: Any) -> Directive:
    return parse(render("nginx", "nginx.conf.j2", **overrides))


def headers(block: Directive) -> dict[str, list[str]]:
    added = block.all("add_header")
    names = [directive.args[0] for directive in added]
    assert len(names) == len(set(names)), f"a header twice in {block.args}"
    return {directive.args[0]: directive.args[1:] for directive in added}


class TestWhatTheApiCouldNotRead:
    @pytest.mark.parametrize(
        ("variable", "fine", "refused"),
        [
            ("$tap_uri_unreadable", ["/api/bets?a=%20"], ["/api/\xff", "/api/a b", "/api/\x7f"]),
            ("$tap_method_unknown", ["GET", "POST", "DELETE"], ["FOO", "get", "GETX", ""]),
        ],
    )
    def test_is_refused_before_it_gets_there(
        self, variable: str, fine: list[str], refused: list[str]
    ) -> None:
        (found,) = [block for block in site().all("map") if block.args[1] == variable]
        (rule,) = [entry for entry in found.block if entry.name.startswith("~")]
        matches = rule.args == ["1"]
        pattern = re.compile(rule.name.removeprefix("~"))
        assert all(bool(pattern.search(text)) is not matches for text in fine)
        assert all(bool(pattern.search(text)) is matches for text in refused)
        api = server().location("^~", "/api/")
        assert [f"({variable})"] in [block.args for block in api.all("if")]


class TestMain:
    def test_connections_and_files_hold_the_planned_load(self) -> None:
        conf = main()
        assert conf.one("events").value("worker_connections") == "16384"
        assert int(conf.value("worker_rlimit_nofile")) >= 16384
        assert conf.value("worker_processes") == "auto"

    def test_a_reload_leaves_websockets_time_to_drain(self) -> None:
        assert main().value("worker_shutdown_timeout") == "90s"

    def test_slow_clients_lose_their_place(self) -> None:
        http = main().one("http")
        assert http.value("client_header_timeout") == "10s"
        assert http.value("client_body_timeout") == "10s"

    def test_the_version_is_not_told(self) -> None:
        assert main().one("http").value("server_tokens") == "off"

    def test_overrides_reach_the_file(self) -> None:
        conf = main(
            nginx_worker_connections=9,
            nginx_worker_rlimit_nofile=20000,
            nginx_worker_processes="2",
            nginx_worker_shutdown_timeout=5,
            nginx_client_timeout=3,
        )
        assert conf.one("events").value("worker_connections") == "9"
        assert conf.value("worker_rlimit_nofile") == "20000"
        assert conf.value("worker_processes") == "2"
        assert conf.value("worker_shutdown_timeout") == "5s"
        assert conf.one("http").value("client_header_timeout") == "3s"

    def test_an_access_log_line_is_json_with_request_id_and_times(self) -> None:
        http = main().one("http")
        name, escape, *pieces = http.one("log_format").args
        assert escape == "escape=json"
        assert http.one("access_log").args[1] == name
        line = json.loads("".join(pieces))
        assert line["request_id"] == "req_$request_id"
        assert line["component"] == "nginx"
        assert {"level", "time", "message", "request_time", "upstream_time"} <= set(line)


class TestListening:
    def test_both_ports_on_both_protocols(self) -> None:
        assert {directive.args[0] for directive in server().all("listen")} == {
            "80",
            "443",
            "[::]:80",
            "[::]:443",
        }

    @pytest.mark.parametrize("off", [False, "false"])
    def test_a_machine_without_ipv6(self, off: bool | str) -> None:
        listening = {directive.args[0] for directive in server(nginx_ipv6=off).all("listen")}
        assert listening == {"80", "443"}

    def test_tls_is_modern_and_only_on_443(self) -> None:
        block = server()
        for listen in block.all("listen"):
            assert ("ssl" in listen.args) == listen.args[0].endswith("443")
            assert ("http2" in listen.args) == listen.args[0].endswith("443")
        assert block.value("ssl_protocols") == "TLSv1.2 TLSv1.3"

    def test_the_self_signed_certificate_is_the_default(self) -> None:
        assert server().value("ssl_certificate") == "/etc/ssl/certs/tap-trading.pem"
        assert server().value("ssl_certificate_key") == "/etc/ssl/private/tap-trading.key"

    def test_a_certificate_of_ones_own(self) -> None:
        own = server(nginx_tls_certificate="/a.pem", nginx_tls_certificate_key="/a.key")
        assert own.value("ssl_certificate") == "/a.pem"
        assert own.value("ssl_certificate_key") == "/a.key"

    def test_the_certificate_names_the_machine_and_loopback(self) -> None:
        names = evaluate(
            "nginx",
            "_nginx_subject_alt_names",
            nginx_server_names=["_", "tap.example", "*.x", "~^y"],
        )
        assert names == ["DNS:tap-vm", "DNS:localhost", "DNS:tap.example", "IP:127.0.0.1", "IP:::1"]

    def test_half_a_certificate_is_refused(self) -> None:
        task = "Refuse half a certificate"
        assert accepts("nginx", task)
        assert not accepts("nginx", task, nginx_tls_certificate="/a.pem")
        assert not accepts("nginx", task, nginx_tls_certificate_key="/a.key")

    def test_fewer_files_than_connections_are_refused(self) -> None:
        task = "Refuse fewer files than connections"
        assert accepts("nginx", task)
        assert not accepts("nginx", task, nginx_worker_rlimit_nofile=16383)


class TestRedirect:
    @staticmethod
    def goes_to_https(url: str) -> bool:
        """Follows Nginx's own order: an exact entry, the first regex that fits, the default."""
        entries = {entry.name: entry.args[0] for entry in site().one("map", *HTTPS_MAP).block}
        if url in entries:
            return entries[url] == "1"
        for pattern, answer in entries.items():
            if pattern.startswith("~") and re.search(pattern[1:], url):
                return answer == "1"
        return entries["default"] == "1"

    @pytest.mark.parametrize("path", ["/", "/ws", "/api/bets", "/api/healthz/x", "/assets/a.js"])
    def test_plain_http_goes_to_https(self, path: str) -> None:
        assert self.goes_to_https("http" + path)
        assert not self.goes_to_https("https" + path)

    @pytest.mark.parametrize(
        "path", ["/api/healthz", "/.well-known/acme-challenge/token", "/.problem/503"]
    )
    def test_health_and_challenges_stay(self, path: str) -> None:
        assert not self.goes_to_https("http" + path)

    def test_it_keeps_the_method(self) -> None:
        assert server().one("if", "($tap_to_https)").value("return").startswith("308 https://")

    def test_it_can_be_switched_off(self) -> None:
        without = site(nginx_https_redirect=False)
        assert not without.all("map", *HTTPS_MAP)
        assert not without.one("server").all("if")

    def test_browsers_remember_it_over_tls_only(self) -> None:
        hsts = site(nginx_hsts_max_age=7).one("map", "$https", "$tap_hsts")
        assert hsts.value("default") == ""
        assert hsts.value("on") == "max-age=7"


class TestProxy:
    @pytest.mark.parametrize(
        ("location", "upstream"),
        [(("^~", "/api/"), "http://127.0.0.1:8080"), (("=", "/ws"), "http://127.0.0.1:8081")],
    )
    def test_path_and_origin_of_a_request_reach_the_service_untouched(
        self, location: tuple[str, str], upstream: str
    ) -> None:
        block = server().location(*location)
        # A URI here, if only a slash, would strip and decode the path.
        assert block.value("proxy_pass") == upstream
        assert block.value("proxy_next_upstream") == "off"
        assert block.value("proxy_set_header", "X-Real-IP") == "$remote_addr"
        assert block.value("proxy_set_header", "X-Forwarded-For") == "$remote_addr"
        assert block.value("proxy_set_header", "X-Forwarded-Proto") == "$scheme"
        assert block.value("proxy_set_header", "X-Request-ID") == "req_$request_id"
        assert block.value("proxy_set_header", "Host") == "$tap_host"

    def test_bets_have_kept_connections_and_the_same_limits(self) -> None:
        tree = site(nginx_bets_keepalive=7)
        block = tree.one("server").location("=", "/api/bets")
        api = tree.one("server").location("^~", "/api/")
        same = ("limit_req", "gzip", "proxy_http_version", "proxy_read_timeout", "if")
        for name in same:
            assert [d.args for d in block.all(name)] == [d.args for d in api.all(name)]
        assert block.value("proxy_pass") == "http://$tap_bets_upstream"
        assert block.value("proxy_set_header", "Connection") == ""
        for name in ("Host", "X-Real-IP", "X-Forwarded-For", "X-Forwarded-Proto", "X-Request-ID"):
            assert block.value("proxy_set_header", name) == api.value("proxy_set_header", name)
        kept = tree.one("map", "$request_method", "$tap_bets_upstream")
        assert kept.value("POST") == "tap_bets"
        assert kept.value("default") == "tap_api"
        assert tree.one("upstream", "tap_bets").value("keepalive") == "7"
        assert not tree.one("upstream", "tap_api").all("keepalive")
        assert tree.one("upstream", "tap_api").value("server") == "127.0.0.1:8080"
        assert tree.one("upstream", "tap_bets").value("server") == f"unix:{BETS}"

    def test_a_bet_may_be_repeated_once_and_nothing_else(self) -> None:
        block = server()
        bets = block.location("=", "/api/bets")
        assert bets.value("proxy_next_upstream") == "error non_idempotent"
        assert bets.value("proxy_next_upstream_tries") == "2"
        for location in (block.location("^~", "/api/"), block.location("=", "/ws")):
            assert location.value("proxy_next_upstream") == "off"

    def test_websockets_are_upgraded_and_outlive_the_heartbeat(self) -> None:
        tree = site()
        block = tree.one("server").location("=", "/ws")
        assert block.value("proxy_http_version") == "1.1"
        assert block.value("proxy_set_header", "Upgrade") == "$http_upgrade"
        assert block.value("proxy_set_header", "Connection") == "$tap_connection"
        assert block.value("proxy_read_timeout") == "75s"
        connection = tree.one("map", "$http_upgrade", "$tap_connection")
        assert connection.value("default") == "upgrade"
        assert connection.value("") == "close"

    def test_the_services_own_problems_pass(self) -> None:
        text = render("nginx", "tap-trading.j2")
        assert "proxy_intercept_errors on" not in text

    def test_nginx_alone_sets_its_headers(self) -> None:
        hidden = {directive.args[0] for directive in server().all("proxy_hide_header")}
        assert hidden == SECURITY_HEADERS | {"X-Request-ID"}

    def test_a_location_that_proxies_inherits_the_headers(self) -> None:
        block = server()
        for location in (block.location("^~", "/api/"), block.location("=", "/ws")):
            assert not location.all("add_header")
            assert not location.all("proxy_hide_header")


class TestLimits:
    def test_the_plans_rates(self) -> None:
        tree = site()
        api, ws = tree.all("limit_req_zone")
        assert api.args[1:] == ["zone=api:10m", "rate=100r/m"]
        assert ws.args[1:] == ["zone=ws:10m", "rate=60r/m"]
        block = tree.one("server")
        assert block.location("^~", "/api/").value("limit_req") == "zone=api burst=20 nodelay"
        assert block.location("=", "/ws").value("limit_req") == "zone=ws burst=50 nodelay"
        assert block.value("limit_conn", "addr") == "1000"

    def test_a_limit_is_answered_429(self) -> None:
        assert server().value("limit_req_status") == "429"
        assert server().value("limit_conn_status") == "429"

    def test_bodies(self) -> None:
        assert server().value("client_max_body_size") == "16k"
        assert server(nginx_body_limit="1m").value("client_max_body_size") == "1m"

    def test_overrides_reach_the_file(self) -> None:
        tree = site(
            nginx_api_rate=7,
            nginx_api_burst=8,
            nginx_ws_rate=9,
            nginx_ws_burst=10,
            nginx_connections_per_address=11,
            nginx_api_timeout=12,
            nginx_ws_timeout=13,
        )
        api, ws = tree.all("limit_req_zone")
        assert api.args[-1] == "rate=7r/m"
        assert ws.args[-1] == "rate=9r/m"
        block = tree.one("server")
        assert "burst=8" in block.location("^~", "/api/").value("limit_req")
        assert "burst=10" in block.location("=", "/ws").value("limit_req")
        assert block.value("limit_conn", "addr") == "11"
        assert block.location("^~", "/api/").value("proxy_read_timeout") == "12s"
        assert block.location("=", "/ws").value("proxy_read_timeout") == "13s"

    def test_every_zone_counts_the_same_client(self) -> None:
        tree = site()
        for zone in (*tree.all("limit_req_zone"), *tree.all("limit_conn_zone")):
            assert zone.args[0] == "$tap_client"

    @pytest.mark.parametrize(
        "network", [b"\x20\x01\x0d\xb8\x00\x00\x00\x05", b"\n\x00\n\n\n\x00\xff\n"]
    )
    def test_ipv6_is_counted_by_its_64(self, network: bytes) -> None:
        entries = site().one("map", "$binary_remote_addr", "$tap_client").block
        (pattern,) = [entry for entry in entries if entry.name.startswith("~")]
        expression = re.compile(pattern.name[1:].replace("?<", "?P<").encode())
        assert pattern.args == ["$tap_net64"]
        for host in (b"\x00" * 7 + b"\x01", b"\n" * 8, b"\xff" * 8):
            match = expression.search(network + host)
            assert match
            assert match["tap_net64"] == network
        assert not expression.search(b"\x7f\x00\x00\x01")


class TestHeaders:
    def test_every_answer_has_all_of_them(self) -> None:
        block = server()
        for place in (block, *block.all("location")):
            added = headers(place)
            if added:
                assert set(added) >= SECURITY_HEADERS | {"X-Request-ID"}, place.args
                for name in SECURITY_HEADERS | {"X-Request-ID"}:
                    assert added[name][1:] == ["always"], f"{name} in {place.args}"
                assert added["X-Request-ID"][0] == "req_$request_id"

    def test_the_page_talks_to_its_own_origin_only(self) -> None:
        policy = dict(
            part.strip().split(" ", 1)
            for part in headers(server())["Content-Security-Policy"][0].split(";")
        )
        assert policy["default-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in str(policy)

    def test_another_policy(self) -> None:
        added = headers(server(nginx_content_security_policy="default-src 'none'"))
        assert added["Content-Security-Policy"][0] == "default-src 'none'"


class TestProblems:
    @staticmethod
    def pages() -> dict[str, tuple[int, Directive]]:
        """For every status that Nginx gives itself: the status it goes out with, and the location."""
        block = server()
        found: dict[str, tuple[int, Directive]] = {}
        for page in block.all("error_page"):
            *statuses, answered, path = page.args
            assert answered.startswith("=")
            for status in statuses:
                assert status not in found
                found[status] = int(answered[1:]), block.location("=", path)
        return found

    @pytest.mark.parametrize(
        ("inside", "status", "code"),
        [
            ("400", 400, "malformed"),
            ("404", 404, "not_found"),
            ("405", 405, "method_not_allowed"),
            ("413", 413, "payload_too_large"),
            ("414", 414, "uri_too_long"),
            ("429", 429, "rate_limited"),
            ("431", 431, "headers_too_large"),
            ("494", 431, "headers_too_large"),
            ("497", 400, "malformed"),
            ("500", 500, "internal_error"),
            ("501", 501, "not_implemented"),
            ("502", 503, "unavailable"),
            ("503", 503, "unavailable"),
            ("504", 503, "unavailable"),
            ("505", 505, "http_version_not_supported"),
        ],
    )
    def test_an_error_is_a_problem(self, inside: str, status: int, code: str) -> None:
        answered, location = self.pages()[inside]
        assert answered == status
        location.one("internal")
        assert location.one("types").block == []
        assert location.value("default_type") == "application/problem+json"
        assert headers(location)["Cache-Control"] == ["no-store", "always"]
        returned, body = location.one("return").args
        assert returned == str(status)
        problem = json.loads(body)
        assert set(problem) == {"type", "title", "status", "detail", "code", "request_id"}
        assert problem["type"] == f"urn:tap-trading:problem:{code}"
        assert problem["code"] == code
        assert problem["status"] == status
        assert problem["request_id"] == "req_$request_id"
        # The only variable of the text; anything else Nginx would expand too.
        assert body.count("$") == 1

    @pytest.mark.parametrize("inside", ["429", "502", "503", "504"])
    def test_what_passes_says_when_to_come_again(self, inside: str) -> None:
        assert headers(self.pages()[inside][1])["Retry-After"] == ["1", "always"]

    def test_a_body_judged_once_is_not_judged_again(self) -> None:
        for _, location in self.pages().values():
            assert location.value("client_max_body_size") == "0"

    def test_services_and_their_neighbours_use_them(self) -> None:
        block = server()
        for location in (("^~", "/api/"), ("=", "/api"), ("=", "/ws")):
            assert not block.location(*location).all("error_page")


class TestPage:
    def test_unknown_paths_are_the_pages_own_routes(self) -> None:
        block = server()
        assert block.value("root") == "/opt/app/frontend/dist"
        assert block.location("/").value("try_files") == "$uri $uri/ /index.html"
        assert headers(block.location("/"))["Cache-Control"] == ["no-cache"]
        assert headers(block.location("=", "/index.html"))["Cache-Control"] == ["no-cache"]

    def test_an_asset_of_the_page_before_is_still_there_and_a_missing_one_is_missing(self) -> None:
        assets, before = server().location("/assets/"), server().location("@assets_before")
        assert assets.value("try_files") == "$uri @assets_before"
        assert before.value("root") == "/opt/app/previous/frontend/dist"
        assert before.value("try_files") == "$uri =404"
        for location in (assets, before):
            caching, *always = headers(location)["Cache-Control"]
            assert "immutable" in caching
            assert not always, "a 404 must not be kept for a year"

    def test_before_the_first_deployment(self) -> None:
        block = server()
        assert block.location("=", "/index.html").value("try_files") == "$uri @no_release"
        missing = block.location("@no_release")
        assert missing.one("return").args[0] == "503"
        assert missing.value("default_type") == "text/html"
        assert "Retry-After" in headers(missing)

    @pytest.mark.parametrize("location", [("=", "/metrics"), ("~", "/\\.")])
    def test_what_is_not_served(self, location: tuple[str, str]) -> None:
        assert server().location(*location).value("return") == "404"

    def test_challenges_come_before_the_rule_for_dotfiles(self) -> None:
        challenges = server(nginx_acme_root="/acme").location("^~", "/.well-known/acme-challenge/")
        assert challenges.value("root") == "/acme"


class TestUnitAndLogs:
    def test_the_unit_never_gives_up(self) -> None:
        unit = configparser.ConfigParser(interpolation=None)
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        unit.read_string(render("nginx", "nginx.service.conf.j2", nginx_worker_rlimit_nofile=20000))
        assert unit["Unit"]["StartLimitIntervalSec"] == "0"
        assert unit["Service"]["Restart"] == "always"
        assert unit["Service"]["RestartSec"] == "1"
        assert unit["Service"]["LimitNOFILE"] == "20000"

    def test_logs_are_bounded(self) -> None:
        lines = render("nginx", "logrotate.j2", nginx_log_max_size="5M", nginx_log_rotations=3)
        words = [line.split() for line in lines.splitlines()]
        assert ["maxsize", "5M"] in words
        assert ["rotate", "3"] in words
        assert ["daily"] in words

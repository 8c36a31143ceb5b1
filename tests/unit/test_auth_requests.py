"""What requests say of themselves: the token they carry, and the fields of their body."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_trading.base.config import ConfigError, load
from tap_trading.base.errors import ProblemError
from tap_trading.services import body
from tap_trading.services.auth import token_of


@pytest.mark.parametrize(
    ("authorization", "cookies", "token"),
    [
        ("", "", None),
        ("Bearer abc", "", "abc"),
        ("bearer abc", "", "abc"),
        ("BEARER   abc  ", "", "abc"),
        ("", "tap_session=abc", "abc"),
        ("", "theme=dark; tap_session=abc; x=y", "abc"),
        ("", "theme=dark;tap_session=abc", "abc"),
        ("", "tap_session=abc; tap_session=def", "abc"),
        ("", "tap_session=a=b", "a=b"),
        ("", "tap_session=", None),
        ("", "tap_session", None),
        ("", "xtap_session=abc; Tap_Session=abc; tap_session_=abc", None),
        ("Bearer abc", "tap_session=def", "abc"),
        # A malformed header is not made good by a cookie.
        ("Bearer", "tap_session=def", None),
        ("Bearer ", "tap_session=def", None),
        ("Bearer a b", "tap_session=def", None),
        ("Bearerabc", "tap_session=def", None),
        ("Basic YTpi", "tap_session=def", None),
        (" ", "tap_session=def", None),
    ],
)
def test_the_token_of_a_request(authorization: str, cookies: str, token: str | None) -> None:
    assert token_of(authorization, cookies) == token


@given(st.text(), st.text())
def test_any_headers_are_survived(authorization: str, cookies: str) -> None:
    token = token_of(authorization, cookies)
    assert token is None or token in authorization + cookies


def test_fields_are_exactly_those_of_the_call() -> None:
    required, optional = {"a", "b"}, {"c"}
    assert body.fields(b'{"a":1,"b":null}', required, optional) == {"a": 1, "b": None}
    assert body.fields(b'{"a":1,"b":2,"c":[]}', required, optional)["c"] == []
    assert body.text_fields(b'{"a":"1","b":""}', required) == {"a": "1", "b": ""}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"a":"\xed\xa0\x80","b":""}', "not JSON"),
        (b"[]", "must be a JSON object"),
        (b'"a"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"{}", "The field a is missing"),
        (b'{"a":"1"}', "The field b is missing"),
        (b'{"a":"1","b":"2","zz":3,"c":4}', "Unknown field: c"),
        (b'{"a":"1","b":"2","' + b"x" * 1000 + b'":3}', "Unknown field: x{64}[.]$"),
        (b'{"a":"1","b":2}', "b must be a string"),
        (b'{"a":null,"b":"2"}', "a must be a string"),
    ],
)
def test_other_bodies_are_malformed(text: bytes, sentence: str) -> None:
    with pytest.raises(ProblemError, match=sentence) as caught:
        body.text_fields(text, {"a", "b"})
    assert (caught.value.status, caught.value.code) == (400, "malformed")


@pytest.mark.parametrize(
    ("domain", "uri"),
    [
        ("localhost", "http://localhost"),
        ("tap.example", "https://tap.example/"),
        ("tap.example:8443", "https://tap.example:8443/play"),
        ("127.0.0.1:8088", "http://127.0.0.1:8088"),
        ("[::1]:8088", "http://[::1]:8088/"),
    ],
)
def test_the_site_has_a_domain_and_an_address_there(domain: str, uri: str) -> None:
    settings = load({"TAP_SITE_DOMAIN": domain, "TAP_SITE_URI": uri})
    assert (settings.site_domain, settings.site_uri) == (domain, uri)
    assert load({}).site_uri == f"http://{load({}).site_domain}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TAP_SITE_DOMAIN", ""),
        ("TAP_SITE_DOMAIN", "https://tap.example"),
        ("TAP_SITE_DOMAIN", "tap.example/"),
        ("TAP_SITE_DOMAIN", "user@tap.example"),
        ("TAP_SITE_DOMAIN", "TAP.example"),
        ("TAP_SITE_DOMAIN", "tap.example:0"),
        ("TAP_SITE_DOMAIN", "-tap.example"),
        ("TAP_SITE_DOMAIN", "tap.example\n"),
        ("TAP_SITE_DOMAIN", "x" * 201),
        ("TAP_SITE_URI", "tap.example"),
        ("TAP_SITE_URI", "ftp://localhost"),
        ("TAP_SITE_URI", "http://user@localhost"),
        ("TAP_SITE_URI", "http://localhost/?x"),
        ("TAP_SITE_URI", "http://[::1"),
        ("TAP_SITE_URI", "http://localhost/" + "x" * 250),
    ],
)
def test_a_wrong_site_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}="):
        load({name: value})


@pytest.mark.parametrize("uri", ["http://other.example", "http://tap.example:80"])
def test_domain_and_address_belong_together(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"TAP_SITE_URI=.*TAP_SITE_DOMAIN=tap\.example"):
        load({"TAP_SITE_DOMAIN": "tap.example", "TAP_SITE_URI": uri})

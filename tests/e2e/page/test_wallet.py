"""The practice wallet: made once, kept by the browser, and never signing for anybody else."""

import secrets
from collections.abc import Callable
from pathlib import Path

import base58
import pytest
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from playwright.async_api import Page, expect

from e2e.page.fake_site import FakeSite, sign_in_text
from e2e.page.steps import expect_account, expect_answer, expect_state, sign_in

_OPEN = "const wallet = await (await import(source)).openWallet();"
_ADDRESS = f"async (source) => {{ {_OPEN} return wallet.address; }}"
_SIGN = f"""async ([source, bytes]) => {{ {_OPEN}
  return {{address: wallet.address, signature: await wallet.sign(new Uint8Array(bytes))}};
}}"""
_STORED = """() => new Promise((resolve, reject) => {
  const opening = indexedDB.open('tap-wallet', 1);
  opening.onerror = () => reject(opening.error);
  opening.onsuccess = async () => {
    const database = opening.result;
    const found = database.transaction('keys').objectStore('keys').get('practice');
    found.onsuccess = async () => {
      database.close();
      const {privateKey} = found.result;
      const read = (format) => crypto.subtle.exportKey(format, privateKey)
        .then(() => 'read', () => 'refused');
      resolve({type: privateKey.type, extractable: privateKey.extractable,
        exports: await Promise.all(['pkcs8', 'jwk', 'raw'].map(read))});
    };
  };
})"""

HOST, ADDRESS, NONCE = "tap.example:8443", base58.b58encode(bytes(range(32))).decode(), "n0nce5678"


@pytest.fixture
def module(dist: Path) -> Callable[[str], str]:
    """The address of one of the page's modules, for `import()`."""

    def address(name: str) -> str:
        [file] = (dist / "assets").glob(f"{name}.*.js")
        return f"/assets/{file.name}"

    return address


async def test_base58_is_the_one_everybody_writes(
    live_page: Page, module: Callable[[str], str]
) -> None:
    samples = [b"", b"\0", b"\0\0\1", b"\xff" * 64, bytes(32), *map(secrets.token_bytes, (32, 64))]
    samples += [bytes(n) + secrets.token_bytes(32 - n) for n in range(1, 6)]
    written = await live_page.evaluate(
        "async ([source, samples]) => { const {encode} = await import(source);"
        " return samples.map((bytes) => encode(new Uint8Array(bytes))); }",
        [module("base58"), [list(sample) for sample in samples]],
    )
    assert written == [base58.b58encode(sample).decode() for sample in samples]


async def test_it_signs_what_its_address_verifies(
    live_page: Page, module: Callable[[str], str]
) -> None:
    message = "signed once: ü\n".encode() + secrets.token_bytes(300)
    made = await live_page.evaluate(_SIGN, [module("wallet"), list(message)])
    key = VerifyKey(base58.b58decode(made["address"]))
    signature = base58.b58decode(made["signature"])
    assert key.verify(message, signature) == message
    with pytest.raises(BadSignatureError):
        key.verify(message + b" ", signature)


async def test_it_survives_a_reload_and_is_the_same_in_every_tab(
    live_page: Page, site: FakeSite, module: Callable[[str], str]
) -> None:
    address = await sign_in(live_page)
    assert len(base58.b58decode(address)) == 32
    await live_page.reload()
    assert await live_page.evaluate(_ADDRESS, module("wallet")) == address
    other = await live_page.context.new_page()
    await other.goto(site.url)
    assert await other.evaluate(_ADDRESS, module("wallet")) == address
    await other.close()


async def test_tabs_that_open_at_once_have_one_wallet(
    live_page: Page, module: Callable[[str], str]
) -> None:
    await live_page.evaluate(
        "() => new Promise((done) => { indexedDB.deleteDatabase('tap-wallet').onsuccess = done; })"
    )
    addresses = await live_page.evaluate(
        "async (source) => { const {openWallet} = await import(source);"
        " const wallets = await Promise.all([...Array(8)].map(() => openWallet()));"
        " return wallets.map(({address}) => address); }",
        module("wallet"),
    )
    assert len(addresses) == 8
    assert len(set(addresses)) == 1


async def test_another_browser_has_another_wallet(
    live_page: Page, site: FakeSite, module: Callable[[str], str]
) -> None:
    own = await live_page.evaluate(_ADDRESS, module("wallet"))
    browser = live_page.context.browser
    assert browser is not None
    context = await browser.new_context()
    other = await context.new_page()
    await other.goto(site.url)
    assert await other.evaluate(_ADDRESS, module("wallet")) != own
    await context.close()


async def test_nobody_can_read_its_private_key(live_page: Page) -> None:
    await sign_in(live_page)
    assert await live_page.evaluate(_STORED) == {
        "type": "private",
        "extractable": False,
        "exports": ["refused"] * 3,
    }


@pytest.mark.parametrize(
    ("without", "sentence"),
    [
        (
            "delete Crypto.prototype.subtle",
            "This browser cannot make the wallet that betting needs (Ed25519)",
        ),
        (
            "SubtleCrypto.prototype.generateKey = async () => { throw new DOMException('', 'NotSupportedError'); }",
            "This browser cannot make the wallet that betting needs (Ed25519)",
        ),
        (
            "Object.defineProperty(window, 'indexedDB', {value: undefined})",
            "This browser keeps nothing for this site (IndexedDB)",
        ),
        (
            "IDBFactory.prototype.open = () => { throw new DOMException('', 'SecurityError'); }",
            "This browser keeps nothing for this site (IndexedDB)",
        ),
        (
            "IDBObjectStore.prototype.put = function () { this.transaction.abort(); }",
            "This browser keeps nothing for this site (IndexedDB)",
        ),
    ],
    ids=["no crypto", "no Ed25519", "no IndexedDB", "IndexedDB forbidden", "nothing kept"],
)
async def test_without_what_a_wallet_needs_prices_go_on_and_betting_is_off(
    page: Page, site: FakeSite, without: str, sentence: str
) -> None:
    await page.add_init_script(without)
    await page.goto(site.url)
    await expect_only_watching(page, site, sentence)


async def test_over_plain_http_it_says_what_is_missing(page: Page, site: FakeSite) -> None:
    await page.goto(site.url.replace("127.0.0.1", "plain.example"))
    assert await page.evaluate("isSecureContext") is False
    await expect_only_watching(page, site, "browsers make only over HTTPS")


async def expect_only_watching(page: Page, site: FakeSite, sentence: str) -> None:
    await expect_state(page, "live")
    await expect_account(page, "impossible")
    await expect_answer(page, sentence)
    said = await page.locator("#answer").inner_text()
    assert said.count(". ") == 0
    assert said.endswith("you can only watch the prices.")
    await expect(page.get_by_role("button", name="Start practising")).to_be_hidden()

    await site.send_price(6_400_001)
    await expect(page.locator("#price")).to_have_text("$64,000.01")
    cell = page.locator(".cell[data-cell-id]").nth(40)
    await expect(cell).to_have_attribute("aria-disabled", "true")
    assert await page.locator(".cell[aria-disabled=false]").count() == 0
    await cell.dispatch_event("click")
    await page.wait_for_timeout(200)
    assert site.bets == []
    assert site.accounts.calls == ["me"]


def text_to_sign(
    domain: str = HOST, address: str = ADDRESS, nonce: str = NONCE, uri: str = f"https://{HOST}"
) -> str:
    return sign_in_text(domain, address, nonce, uri)


TEXTS: list[tuple[object, str]] = [
    (text_to_sign(), ""),
    (text_to_sign(uri=f"https://{HOST}/deep/er"), ""),
    (text_to_sign(domain="other.example"), "is for other.example, but this page is"),
    (text_to_sign(domain="tap.example"), "is for tap.example, but"),
    (text_to_sign(domain=f"{HOST}.other.example"), "but this page is"),
    (text_to_sign(domain=f"other.example {HOST}"), "but this page is"),
    (text_to_sign(domain=f"x@{HOST}"), "but this page is"),
    (text_to_sign(domain=HOST.upper()), "but this page is"),
    (text_to_sign(domain="o" * 500), f"is for {'o' * 60}…, but"),
    (text_to_sign(domain=""), "is for no site, but"),
    (f" {text_to_sign()}", "but this page is"),
    (f"\n{text_to_sign()}", "no sign-in text"),
    (text_to_sign().replace("wants you", "wishes you"), "no sign-in text"),
    (text_to_sign().replace("Solana account:", "Ethereum account:"), "no sign-in text"),
    (text_to_sign().replace("\n", "\r\n"), "no sign-in text"),
    (text_to_sign(address=f"{ADDRESS[:-1]}1"), "another account"),
    (text_to_sign(address=f" {ADDRESS}"), "another account"),
    (text_to_sign(uri="https://other.example"), "is for https://other.example, but"),
    (text_to_sign(uri=f"https://other.example/{HOST}"), "but this page is"),
    (text_to_sign(uri="nothing"), "but this page is"),
    (text_to_sign(nonce="0ther5678"), "another nonce"),
    (text_to_sign().replace(f"Nonce: {NONCE}\n", ""), "another nonce"),
    (f"{text_to_sign()}\nNonce: 0ther5678", "another nonce"),
    (f"{text_to_sign()}\nURI: https://other.example", "but this page is"),
    (f"{HOST} wants you to sign in with your Solana account:", "another account"),
    ("", "no sign-in text"),
    (None, "no sign-in text"),
    (7, "no sign-in text"),
]


async def test_it_signs_only_for_this_site_this_account_and_this_nonce(
    live_page: Page, module: Callable[[str], str]
) -> None:
    said = await live_page.evaluate(
        "async ([source, texts, own]) => { const {objection} = await import(source);"
        " return texts.map((text) => objection(text, own)); }",
        [
            module("sign_in_text"),
            [text for text, _ in TEXTS],
            {"host": HOST, "address": ADDRESS, "nonce": NONCE},
        ],
    )
    assert len(said) == len(TEXTS)
    for (text, against), objection in zip(TEXTS, said, strict=True):
        assert (against in objection) if against else objection == "", (text, objection)

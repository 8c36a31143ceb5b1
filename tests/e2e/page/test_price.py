"""The live price: readout, chart, measuring hook."""

from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from e2e.page.fake_site import FakeSite, bar_time, proxy_page
from e2e.page.steps import expect_state, prices_flowing, until

_COLOURS = """() => {
  const canvas = document.getElementById('chart');
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const colours = new Set();
  let painted = 0;
  for (let i = 0; i < data.length; i += 4)
    if (data[i + 3] > 200) { painted += 1; colours.add(data.slice(i, i + 3).join()); }
  return {painted, colours: colours.size};
}"""


async def test_the_price_is_shown_as_it_arrives(live_page: Page, site: FakeSite) -> None:
    price = live_page.locator("#price")
    await expect(price).to_have_text("$64,213.57")
    bar = await site.send_price(6_400_001)
    await expect(price).to_have_text("$64,000.01")
    await expect(price).to_have_attribute("data-t", str(bar["t"]))
    await expect(live_page.locator("#low")).to_have_text("$63,998.51")


async def test_the_chart_is_painted(live_page: Page) -> None:
    await expect(live_page.locator("#change")).to_contain_text("in 60 s")
    picture = await live_page.evaluate(_COLOURS)
    assert picture["painted"] > 1_000
    assert picture["colours"] > 5


async def test_the_chart_moves_with_time(live_page: Page, site: FakeSite) -> None:
    async with prices_flowing(site):
        before = await live_page.evaluate("document.getElementById('chart').toDataURL()")
        await live_page.wait_for_timeout(500)
        after = await live_page.evaluate("document.getElementById('chart').toDataURL()")
    assert before != after


async def test_every_drawn_price_is_recorded_with_its_times(
    live_page: Page, site: FakeSite
) -> None:
    first = bar_time()
    stamps = [first + 100 * n for n in range(5)]
    for stamp in stamps:
        await site.send_price(t=stamp)
    await expect(live_page.locator("#price")).to_have_attribute("data-t", str(stamps[-1]))
    entries = await live_page.evaluate("window.tapLatency")
    assert [entry["t"] for entry in entries] == stamps
    for entry in entries:
        assert 0 <= entry["drawn"] - entry["received"] < 1_000
        assert abs(entry["received"] - first) < 10_000


async def test_the_record_is_bounded(live_page: Page, site: FakeSite) -> None:
    first = bar_time()
    for n in range(1_100):
        await site.send_price(t=first + n)
    await expect(live_page.locator("#price")).to_have_attribute("data-t", str(first + 1_099))
    entries = await live_page.evaluate("window.tapLatency")
    assert len(entries) == 1_000
    assert entries[-1]["t"] == first + 1_099


async def test_nothing_is_drawn_while_nobody_looks(live_page: Page, site: FakeSite) -> None:
    await live_page.evaluate("""() => {
      Object.defineProperty(document, 'visibilityState', {value: 'hidden', configurable: true});
      document.dispatchEvent(new Event('visibilitychange'));
    }""")
    await site.send_price(6_300_000)
    await live_page.wait_for_timeout(300)
    await expect(live_page.locator("#price")).to_have_text("$64,213.57")
    await live_page.evaluate("""() => {
      delete document.visibilityState;
      document.dispatchEvent(new Event('visibilitychange'));
    }""")
    await expect(live_page.locator("#price")).to_have_text("$63,000.00")


async def test_prices_that_make_no_sense_are_left_out(live_page: Page, site: FakeSite) -> None:
    await site.send(type="price", t=bar_time() + 100, price="64,000", low=1, high=2)
    await site.send(type="price", price=5)
    await site.send(type="price", **site.bar(bar_time() - 30_000, 1_000_000))
    await site.send(type="something new", of="a later release")
    for socket in site.sockets:
        await socket.send_str("not json")
    await site.send_price(6_421_400, t=bar_time() + 200)
    await expect(live_page.locator("#price")).to_have_text("$64,214.00")


@pytest.mark.parametrize("ratio", [1, 2])
async def test_the_canvas_has_the_screens_own_pixels(
    browser: Browser, site: FakeSite, ratio: int
) -> None:
    context = await browser.new_context(
        viewport={"width": 800, "height": 700}, device_scale_factor=ratio
    )
    page = await context.new_page()
    await page.goto(site.url)
    await expect_state(page, "live")
    for width in (800, 500):
        await page.set_viewport_size({"width": width, "height": 700})
        await page.wait_for_function(
            "(ratio) => { const c = document.getElementById('chart');"
            " return c.width === c.clientWidth * ratio && c.height === c.clientHeight * ratio; }",
            arg=ratio,
        )
    await context.close()


async def test_a_phone_needs_no_sideways_scrolling(page: Page, site: FakeSite) -> None:
    await page.set_viewport_size({"width": 320, "height": 640})
    await page.goto(site.url)
    await expect_state(page, "live")
    widths: dict[str, Any] = await page.evaluate(
        "({page: document.documentElement.scrollWidth, window: innerWidth})"
    )
    assert widths["page"] <= widths["window"]


async def test_the_footer_names_the_release(live_page: Page) -> None:
    await expect(live_page.locator("#version")).to_have_text("v0.1.0-12+3f2a91c")
    await expect(live_page.get_by_text("Practice money")).to_be_visible()


async def test_a_proxys_own_page_instead_of_the_version_is_ignored(
    page: Page, site: FakeSite, complaints: Any
) -> None:
    complaints.expect_failed_load("/api/version")
    site.version_answer = proxy_page(503)
    await page.goto(site.url)
    await expect_state(page, "live")
    site.version_answer = proxy_page(200)
    before = site.connections
    await site.drop()
    await until(lambda: site.connections > before)
    await expect_state(page, "live")
    await expect(page.locator("#version")).to_be_empty()

"""What a trader does and sees, as steps for the tests."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from playwright.async_api import Page, expect

from e2e.page.fake_site import FakeSite

_OPEN_CELLS_IN_SIGHT = """() => {
  const plot = document.getElementById('cells').getBoundingClientRect();
  const aims = [];
  for (const cell of document.querySelectorAll('.cell[aria-disabled=false]')) {
    const box = cell.getBoundingClientRect();
    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
    if (x < plot.right - 15 && y > plot.top + 15 && y < plot.bottom - 15)
      aims.push({id: cell.dataset.cellId, x, y});
  }
  return aims.filter((aim) => Number(aim.id.split(':')[1]) > Date.now() / 1000 + 14);
}"""


async def aim(page: Page, index: int = 0, column: str = "") -> dict[str, str | float]:
    """Id and middle of an open cell in sight that stays open for a few seconds.

    Cells move with time, so a test aims with the mouse instead of waiting for one to hold still.
    With `column`, the start of a column as in a cell's id, only its cells are counted.
    """
    await expect(page.locator(".cell[aria-disabled=false]").first).to_be_attached()
    aims = await page.evaluate(_OPEN_CELLS_IN_SIGHT)
    return dict([found for found in aims if column in found["id"].split(":")[1]][index])


async def tap(page: Page, index: int = 0, column: str = "") -> str:
    """Taps an open cell; returns its id."""
    target = await aim(page, index, column)
    await page.mouse.click(float(target["x"]), float(target["y"]))
    return str(target["id"])


async def expect_state(page: Page, state: str, seconds: float = 10) -> None:
    await expect(page.locator("#connection")).to_have_attribute(
        "data-state", state, timeout=seconds * 1_000
    )


async def expect_live(page: Page) -> None:
    """Connected, and showing a price: the first start on a busy machine takes its time."""
    await expect_state(page, "live", 30)
    await expect(page.locator("#price")).to_have_attribute("data-price", re.compile(r"^\d+$"))


async def expect_answer(page: Page, words: str, seconds: float = 10) -> None:
    await expect(page.locator("#answer")).to_contain_text(words, timeout=seconds * 1_000)


async def expect_bet(page: Page, cell_id: str, bet: str) -> None:
    await expect(page.locator(f'[id=cells] [data-cell-id="{cell_id}"]')).to_have_attribute(
        "data-bet", bet
    )


async def expect_account(page: Page, state: str) -> None:
    """`state` as in `#account` `data-state`: out, in, impossible …"""
    await expect(page.locator("#account")).to_have_attribute("data-state", state)


async def expect_balance(page: Page, cents: int) -> None:
    await expect(page.locator("#balance")).to_have_attribute("data-cents", str(cents))


async def sign_in(page: Page) -> str:
    """Signs in with the button; returns the account's address."""
    await page.get_by_role("button", name="Start practising").click()
    await expect_account(page, "in")
    return str(await page.locator("#address").get_attribute("data-address"))


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def prices_flowing(site: FakeSite) -> AsyncIterator[None]:
    """Ten prices a second, as from a healthy feed."""

    async def flow() -> None:
        step = 0
        while True:
            step += 1
            await site.send_price(site.price + (100 if step % 2 else -100))
            await asyncio.sleep(0.1)

    task = asyncio.create_task(flow())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

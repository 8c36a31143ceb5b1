"""A site over the end of a week."""

from pathlib import Path

import pytest

from archived_site import Site, site_with_a_closed_week


@pytest.fixture
async def site(database: Path, prices: Path, tmp_path: Path) -> Site:
    """Ten minutes of a market in whose middle a week ended."""
    return await site_with_a_closed_week(database, prices, tmp_path / "archive")

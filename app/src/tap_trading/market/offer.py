"""The grid as clients are told it, over HTTP and over the stream alike."""

from typing import Any

from tap_trading.game import grid


def grid_fields(geometry: grid.Geometry, now_ms: int, price: int | None) -> dict[str, Any]:
    """Columns and placeable cells at a price in cents; empty while there is no price."""
    if price is None:
        return {"columns": [], "cells": []}
    return {
        "columns": [
            {"start": column.start, "width": column.width, "step": column.step}
            for column in grid.columns(geometry, now_ms, price)
        ],
        "cells": [
            {"cell_id": cell.cell_id, "reward_rate": None}
            for cell in grid.cells(geometry, now_ms, price)
        ],
    }

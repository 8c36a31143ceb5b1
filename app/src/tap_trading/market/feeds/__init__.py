"""Price sources: one module each, all of them a `PriceSource`."""

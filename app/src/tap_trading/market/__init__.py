"""The price: where it comes from, its 100 ms bars, how it is published and watched."""

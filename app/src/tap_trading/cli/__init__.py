"""The ops tool `tap`."""

"""What goes wrong with archives."""


class ArchiveError(Exception):
    """Nothing was lost, and the next run goes on; the text says why this one did not."""

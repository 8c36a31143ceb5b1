"""A site whose databases are copied: books with bets, prices with bars, and `tap` for them."""

from dataclasses import dataclass
from pathlib import Path

from tap_trading.base import textfile


@dataclass
class CopiedSite:
    """Where its parts are, and how `tap` reaches them."""

    folder: Path
    environment: dict[str, str]

    @property
    def copies(self) -> Path:
        return self.folder / "copies"

    @property
    def metrics(self) -> Path:
        return self.folder / "backup.prom"

    @property
    def drilled(self) -> Path:
        return self.folder / "drill.prom"

    def backup_words(self, *more: str) -> list[str]:
        return ["backup-all", "--dest", str(self.copies), "--metrics", str(self.metrics), *more]

    def drill_words(self) -> list[str]:
        scratch = str(self.folder / "drill")
        where = ["--dest", str(self.copies), "--scratch", scratch]
        return ["drill", *where, "--metrics", str(self.drilled)]

    def names(self) -> list[str]:
        """The copies, oldest first; nothing else may be there but the note of what is away."""
        found = sorted(path.name for path in self.copies.iterdir())
        if ".offsite.json" in found:
            found.remove(".offsite.json")
        return found

    def value(self, name: str, label: str = "") -> float:
        """A metric of the last run."""
        return {**textfile.read(self.metrics), **textfile.read(self.drilled)}[name][label]

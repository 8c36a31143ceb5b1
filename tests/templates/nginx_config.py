"""Reads Nginx's configuration language into a tree, so that tests ask for meaning and not for text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOKEN = re.compile(
    r"""
    \s+ | \#[^\n]*                              # blanks and comments
    | (?P<punctuation>[{};])
    | "(?P<double>(?:[^"\\]|\\.)*)"
    | '(?P<single>(?:[^'\\]|\\.)*)'
    | (?P<word>(?:[^\s{};\\]|\\.)+)
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass
class Directive:
    """One directive: its name, its arguments and, for a block, what is inside."""

    name: str
    args: list[str] = field(default_factory=list)
    block: list[Directive] = field(default_factory=list)

    def all(self, name: str, *args: str) -> list[Directive]:
        """The directives of this name directly inside whose first arguments are these."""
        return [d for d in self.block if d.name == name and d.args[: len(args)] == list(args)]

    def one(self, name: str, *args: str) -> Directive:
        """The only one of these."""
        found = self.all(name, *args)
        assert len(found) == 1, f"{len(found)} times {name} {' '.join(args)} in {self.name}"
        return found[0]

    def value(self, name: str, *args: str) -> str:
        """What the only directive of this name says after these arguments."""
        return " ".join(self.one(name, *args).args[len(args) :])

    def location(self, *args: str) -> Directive:
        """The location with exactly these arguments."""
        found = [d for d in self.all("location") if d.args == list(args)]
        assert len(found) == 1, f"{len(found)} locations {' '.join(args)}"
        return found[0]


def parse(text: str) -> Directive:
    """The whole file as one block."""
    tokens = _tokens(text)
    root = Directive("file", block=_block(tokens))
    assert next(tokens, None) is None, "a closing brace too many"
    return root


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        assert match, f"cannot read {text[position : position + 40]!r}"
        position = match.end()
        if match.lastgroup is not None:
            yield match.lastgroup, match[match.lastgroup]


def _block(tokens: Iterator[tuple[str, str]]) -> list[Directive]:
    directives: list[Directive] = []
    words: list[str] = []
    for kind, token in tokens:
        if kind != "punctuation":
            words.append(token)
        elif token == "}":
            break
        else:
            inside = _block(tokens) if token == "{" else []
            directives.append(Directive(words[0] if words else "", words[1:], inside))
            words = []
    assert not words, f"a semicolon is missing after {' '.join(words)!r}"
    return directives

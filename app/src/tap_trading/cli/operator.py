"""Who does something by hand, why, and whether they are sure."""

import argparse
import getpass
import os
import sys

from tap_trading.cli.command import RefusedError

_LONGEST_TEXT = 200


def add_arguments(command: argparse.ArgumentParser, kept_in: str) -> None:
    """Let the command say why and by whom; `kept_in` is where that is written down."""
    command.add_argument("--reason", type=_text, required=True, help=f"why, for {kept_in}")
    command.add_argument(
        "--operator",
        type=_text,
        help=f"who does it, for {kept_in}; default: who called sudo, else who is logged in",
    )
    command.add_argument("--yes", action="store_true", help="do not ask")


def name_of(args: argparse.Namespace) -> str:
    """Who does it. Raises RefusedError when nobody can tell."""
    if args.operator:
        return str(args.operator)
    if sudo_user := os.environ.get("SUDO_USER"):
        return sudo_user
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise RefusedError("nobody is logged in; say who does this with --operator") from None


def confirmed() -> bool:
    """Ask at the terminal. Raises RefusedError when there is none."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise RefusedError(
            "there is no terminal to ask at, so nothing was written; confirm with --yes"
        )
    try:
        return input("write this? [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        print()
        return False


def _text(text: str) -> str:
    if not text.strip() or len(text) > _LONGEST_TEXT or not text.isprintable():
        raise argparse.ArgumentTypeError(
            f"must be 1 to {_LONGEST_TEXT} printable characters, not all of them blank"
        )
    return text.strip()

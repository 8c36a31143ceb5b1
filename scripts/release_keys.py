#!/usr/bin/env python3
"""The key that signs releases, and the one that machines verify them by.

`make keys` makes a first pair: `.keys/release.key`, which signs and stays secret, and
`.keys/release.pub`, which machines are given (`release_public_keys`). Both are Base64 of
32 bytes, an Ed25519 seed and its public key. TAP_RELEASE_KEY names another file to sign
with; one that Ansible Vault has encrypted is read through it.
"""

import base64
import binascii
import os
import subprocess
import sys
from pathlib import Path

from nacl.signing import SigningKey

ROOT = Path(__file__).resolve().parent.parent
FIRST = ROOT / ".keys" / "release.key"
_VAULT = "$ANSIBLE_VAULT;"


class KeyFileError(Exception):
    """There is no key to sign with; the text says why."""


def _encoded(key: bytes) -> str:
    return base64.b64encode(key).decode() + "\n"


def make_first() -> bool:
    """Make the first pair unless it is there; whether it was made now."""
    if FIRST.exists():
        return False
    FIRST.parent.mkdir(mode=0o700, exist_ok=True)
    key = SigningKey.generate()
    FIRST.with_suffix(".pub").write_text(_encoded(bytes(key.verify_key)))
    fresh = FIRST.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(_encoded(bytes(key)))
    fresh.rename(FIRST)
    return True


def signing_key() -> SigningKey:
    """The key of TAP_RELEASE_KEY, else the first one, which is made now if need be.

    Raises KeyFileError.
    """
    named = os.environ.get("TAP_RELEASE_KEY")
    if not named and make_first():
        print(f"made a first key to sign releases with: {FIRST}", file=sys.stderr)
    path = Path(named) if named else FIRST
    try:
        text = path.read_text()
        if text.startswith(_VAULT):
            text = subprocess.run(
                ["ansible-vault", "view", path], check=True, capture_output=True, text=True
            ).stdout
        return SigningKey(base64.b64decode(text.strip(), validate=True))
    except OSError as error:
        raise KeyFileError(f"cannot read the key {path}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        why = error.stderr.strip().splitlines()[-1:]
        raise KeyFileError(
            f"Ansible Vault does not open the key {path}: {' '.join(why)}"
        ) from error
    except (binascii.Error, ValueError) as error:
        raise KeyFileError(f"{path} holds no key: Base64 of 32 bytes is needed") from error


def main() -> None:
    """Command line."""
    made = make_first()
    print(f"{'made' if made else 'kept'} {FIRST.relative_to(ROOT)}, which signs: keep it secret")
    public = FIRST.with_suffix(".pub").read_text().strip()
    print(f"machines trust it with release_public_keys: [{public}]")


if __name__ == "__main__":
    main()

"""The rules of the game, pure: numbers in, numbers out; no I/O and no clock."""

"""Copies of the databases: made, proven, kept, sent off the machine and restored."""

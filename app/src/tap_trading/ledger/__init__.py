"""The money database: its schema, its one write path and its questions."""

"""The money database: its schema, its one write path, its questions and its copies."""

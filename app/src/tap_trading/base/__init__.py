"""What every process stands on: settings, SQLite, Redis, logs, metrics, health, version."""

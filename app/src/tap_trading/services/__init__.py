"""The processes: each module only wires the packages below it into a service."""

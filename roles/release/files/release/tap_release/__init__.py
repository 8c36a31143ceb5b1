"""The release tool: what happens on the machine during a deployment."""

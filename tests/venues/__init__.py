"""Exchanges to test against: a WebSocket server that plays recordings and real trades."""

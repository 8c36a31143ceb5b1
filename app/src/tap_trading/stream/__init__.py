"""The live stream to the browsers: messages, clients and fan-out."""

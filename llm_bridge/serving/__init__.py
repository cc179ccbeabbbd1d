"""Bridges and servers: a client for servers that run the language model, and servers of our own."""

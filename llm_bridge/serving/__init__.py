"""Our own server, and a client for servers that run the language model."""

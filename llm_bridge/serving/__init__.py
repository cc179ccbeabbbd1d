"""Serving: our own small server with the wires of annotation tools, and clients of servers that know nothing of us."""

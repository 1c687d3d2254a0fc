"""Deskmate's gateway: who is calling, what was said, who may run now, and the protocols people speak to it."""

VERSION = "0.1.0"

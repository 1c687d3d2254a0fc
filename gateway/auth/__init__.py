"""Who is calling: keys, links, passwords and sessions become one `Principal`."""

from gateway.auth.principal import Principal, Role, Scope

__all__ = ["Principal", "Role", "Scope"]

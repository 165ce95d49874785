"""The control socket: what the gateway and people ask of the supervisor, and what they are told."""

"""The embedded checkpoint: how it is made, and how well it reads."""

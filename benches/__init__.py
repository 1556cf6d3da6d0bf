"""Every figure that the README and the docs quote, with the command that makes it."""

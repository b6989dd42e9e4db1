"""The commands: one module each, listed in `commands`. `flags` parses, `shipped` finds the config files of the package.

The module of a command imports only `flags` and other light modules at the top, and the rest when the command runs, so
that `--help` does not load jax.
"""

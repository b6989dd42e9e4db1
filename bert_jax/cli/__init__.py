"""The commands: one module each, listed in `commands`; `flags` parses, `shipped` finds the config files of the package.

A command's module imports only `flags` and light modules at the top and everything else when it runs, so that `--help`
does not load jax.
"""

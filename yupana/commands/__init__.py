"""The programs of the command line: each module has `Settings` and `run(settings)`."""

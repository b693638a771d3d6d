# One command per file; each module has a `command`. Imported by name when it is used (agent/cli.py).

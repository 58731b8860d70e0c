"""The doors: each checks its arguments, then calls a custom operator that picks the floor."""

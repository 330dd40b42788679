"""From what a user typed to one resolved configuration: presets, defaults, compatibility checks, the run id.

May import: the top-level modules and the packages up to `scoring`.
"""

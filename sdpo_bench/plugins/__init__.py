"""Finding methods, rewards and studies, loading them, and calling them so that an error names the plugin.

May import: the top-level modules and `system`.
"""

"""BumbleCore's built-in plugins: they come through the same entry points as a stranger's."""

"""The commands with their options and help. The rest is imported when a command runs."""

"""Commands for those who write the course: export, lint, notebooks."""

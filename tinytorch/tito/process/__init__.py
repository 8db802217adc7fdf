"""Other processes: where the code of notebooks and tests runs, and the scripts that run there."""

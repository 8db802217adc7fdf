"""Commands for instructors: release and grade."""

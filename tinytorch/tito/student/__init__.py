"""Commands for students: the loop of a module, and the doctor."""

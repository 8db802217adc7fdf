"""The course tool. It imports nothing that is exported, so it runs when every module is broken."""

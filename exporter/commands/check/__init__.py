"""`check`: validate settings, connections and privileges; change nothing."""

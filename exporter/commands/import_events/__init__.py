"""`import-events`: write what the manager's events tell into periods that the history lacks."""

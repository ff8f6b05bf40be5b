"""Programs that only developers run: the docs generator, rule mutants, crash rounds."""

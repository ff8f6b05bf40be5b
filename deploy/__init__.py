"""Image, database users, and checks of the Docker stack; see docs/deploy.md."""

"""What a deployment needs beside docker-compose.yml; see docs/deploy.md."""

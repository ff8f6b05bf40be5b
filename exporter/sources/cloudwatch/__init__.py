"""CloudWatch: pure query building, error translation, transport, client."""

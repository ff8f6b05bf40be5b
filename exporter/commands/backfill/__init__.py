"""`backfill`: fill gaps older than the live window from CloudWatch."""

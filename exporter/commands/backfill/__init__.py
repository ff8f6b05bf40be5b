"""`backfill`: fill gaps older than `gap_fill_window` from CloudWatch."""

"""`export`: write the history as OpenMetrics or CSV."""

"""CloudWatch: the client, its transport and errors, GetMetricData queries, the memory series, the retention."""

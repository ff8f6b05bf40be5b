"""Time-series databases beside MongoDB that can take a copy of the history: VictoriaMetrics, InfluxDB, PostgreSQL."""

"""The read path: history and CloudWatch queries for the API, PromQL and the dashboards."""

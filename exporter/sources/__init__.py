"""What is only read: the manager's worker documents and CloudWatch."""

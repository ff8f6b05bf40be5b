"""`verify`: compare the history with CloudWatch, value by value."""

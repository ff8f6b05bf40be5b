"""The write path: worker documents and datapoints become samples, exactly once."""

"""Samples that have reached the history are copied into the databases of `history.forward`, continuously."""

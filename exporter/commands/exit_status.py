"""Exit statuses that commands share; 0 is success, 1 failure, 2 a wrong command line, 130 an interruption."""

NO_WORKERS = 2
"""The database holds no worker document: like a wrong command line, it must not look like success."""
CLOSED_PIPE = 141
"""After the reader of the output has gone, as a shell shows it for a program that SIGPIPE ended."""

"""What texts of drivers mean when a server cannot be reached."""

import pytest

from exporter.core.unreachable import reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "HTTPConnection(host='127.0.0.1', port=1): Failed to establish a new connection: [Errno 111] Connection refused",
            "refuses connections",
        ),
        ('connection failed: connection to server at "127.0.0.1", port 1 failed: Connection refused', "refuses connections"),
        ("HTTPConnection(host='v', port=1): Failed to resolve 'v' ([Errno -2] Name or service not known)", "DNS does not know"),
        ("failed to resolve host 'nohost.invalid': [Errno -2] Name or service not known", "DNS does not know"),
        ("connection timeout expired", "does not answer in time"),
    ],
)
def test_a_drivers_text_becomes_a_few_words(text: str, words: str) -> None:
    assert words in str(reason(text))


def test_what_is_none_of_these_stays() -> None:
    assert reason('FATAL: password authentication failed for user "cml"') is None

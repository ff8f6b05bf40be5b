"""The rate limit of requests."""

from exporter.sources.cloudwatch.transport import TokenBucket


def test_a_bucket_lets_a_burst_pass_and_then_spaces_requests_at_its_rate() -> None:
    clock = [100.0]
    bucket = TokenBucket(4, lambda: clock[0])

    assert [bucket.take() for _ in range(6)] == [0, 0, 0, 0, 0.25, 0.5]
    clock[0] += 10
    assert [bucket.take() for _ in range(5)] == [0, 0, 0, 0, 0.25], "it never saves up more than a second's worth"

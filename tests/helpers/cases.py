"""Cases of a test: many small ones as one test, where each would cost more than what it tests; some of them by day alone."""

from collections.abc import Callable, Iterable, Sequence

import pytest
from _pytest.mark import ParameterSet


def by_day(kept: Iterable[object], cases: Iterable[object], at_night: pytest.MarkDecorator) -> list[object]:
    """Return the cases for `pytest.mark.parametrize`: those that `make test` keeps, and the others with the mark `at_night`."""
    kept, cases = list(kept), list(cases)
    assert all(case in cases for case in kept), "a case that is kept has another name now"
    return [case if case in kept else pytest.param(case, marks=at_night) for case in cases]


def for_all(cases: Sequence[ParameterSet]) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Make of a check of one case a test that checks all of them, and fails with every case that is wrong, by its id.

    `pytest.mark.parametrize` makes a test of each case, which is collected in every process of a run, set up, and reported.
    That is worth it only where a case takes longer than those steps.
    """

    def decorate(check: Callable[..., None]) -> Callable[[], None]:
        def test() -> None:
            assert cases
            wrong = []
            for case in cases:
                try:
                    check(*case.values)
                except AssertionError as error:
                    error.add_note(f"case: {case.id}")
                    wrong.append(error)
            if wrong:
                raise ExceptionGroup(f"{len(wrong)} of {len(cases)} cases are wrong", wrong)

        test.__name__, test.__doc__, test.__module__ = check.__name__, check.__doc__, check.__module__
        return test

    return decorate

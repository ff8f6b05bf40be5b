"""What tells several lines of one chart apart: a color, dashes, and a number, so that colors are not needed. Pure."""

MAX_NUMBERED = 8
"""Lines of a chart that can be told apart."""
LOOKS = (
    ("#1f7fd1", "none"),
    ("#d0602b", "8 4"),
    ("#2c955d", "2 3"),
    ("#a45fd6", "12 3 2 3"),
    ("#a67a1c", "5 2"),
    ("#d34a8c", "1 4"),
    ("#17929f", "16 5"),
    ("#7c8692", "6 3 1 3 1 3"),
)
"""Color and dashes of each number. The colors have a contrast of 3:1 on the light and on the dark background."""


def badge(number: int, x: float, y: float) -> str:
    """Return the sign of a numbered line as SVG, at a place in pixels."""
    return (
        f'<circle class="page" stroke="{LOOKS[number - 1][0]}" stroke-width="1.5" cx="{x:.1f}" cy="{y:.1f}" r="7"/>'
        f'<text class="badge" x="{x:.1f}" y="{y + 3.7:.1f}" text-anchor="middle">{number}</text>'
    )


def swatch(number: int) -> str:
    """Return a numbered line as a picture for a legend."""
    color, dashes = LOOKS[number - 1]
    line = f'<path stroke="{color}" stroke-width="2" stroke-dasharray="{dashes}" d="M0 9H64"/>'
    head = '<svg class="chart swatch" width="64" height="18" viewBox="0 0 64 18" aria-hidden="true">'
    return f"{head}{line}{badge(number, 32, 9)}</svg>"

"""Reads charts back: the values from the points of an SVG."""

from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"


def elements(drawn: str, name: str) -> list[ElementTree.Element]:
    """Return the elements of this name."""
    return [*ElementTree.fromstring(drawn.encode()).iter(SVG + name)]


def texts(drawn: str) -> list[str]:
    """Return all that is written in the picture."""
    return [each.text or "" for each in elements(drawn, "text")]


def points(drawn: str, kind: str = "main") -> list[list[tuple[float, float]]]:
    """Return (UTC second, value) of each unbroken part of the lines of a kind, as the picture has them."""
    root = ElementTree.fromstring(drawn.encode())
    at = {
        name: float(root.attrib[f"data-{name}"]) for name in ("start", "end", "left", "right", "top", "bottom", "low", "high")
    }

    def value(x: str, y: str) -> tuple[float, float]:
        time = at["start"] + (float(x) - at["left"]) / (at["right"] - at["left"]) * (at["end"] - at["start"])
        return time, at["low"] + (at["bottom"] - float(y)) / (at["bottom"] - at["top"]) * (at["high"] - at["low"])

    found = []
    for element in root.iter():
        if kind not in element.attrib.get("class", "").split():
            continue
        if element.tag == f"{SVG}polyline":
            found.append([value(*pair.split(",")) for pair in element.attrib["points"].split()])
        elif element.tag == f"{SVG}circle":
            found.append([value(element.attrib["cx"], element.attrib["cy"])])
    return found

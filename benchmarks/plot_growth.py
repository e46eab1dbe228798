"""Plots the results of growth.py: one SVG per curve, with points and the fitted line on logarithmic axes.

python benchmarks/plot_growth.py benchmarks/results/growth-cpu-1thread-DATE.json [--images docs/images]
"""

from __future__ import annotations

import argparse
import json
import math
from html import escape
from pathlib import Path
from typing import Any

from growth import line

WIDTH, HEIGHT = 500, 300
LEFT, RIGHT, TOP, BOTTOM = 74, 456, 46, 250  # edges of the plot, pixels
UNITS = {"s": "processor time, s", "MB": "memory, MB"}
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#444}.t{font-weight:600;font-size:13px;fill:#222}"
    ".g{stroke:#ddd}.l{stroke:#888;stroke-dasharray:5 4;fill:none;stroke-width:1.5}.p{fill:#1a6fb5}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="what growth.py wrote with --out")
    parser.add_argument("--images", type=Path, default=Path(__file__).resolve().parent.parent / "docs/images")
    args = parser.parse_args()
    args.images.mkdir(parents=True, exist_ok=True)
    for result in json.loads(args.file.read_text(encoding="utf-8"))["results"]:
        image = args.images / f"growth-{result['name']}.svg"
        image.write_text(svg(result), encoding="utf-8")
        print(image)


def svg(result: dict[str, Any]) -> str:
    """The whole drawing; a pure function of the result."""
    sizes, values = zip(*result["points"], strict=True)
    curve = [(x, line(result["factors"], result["powers"], x)) for x in between(min(sizes), max(sizes), 60)]
    across = decades(sizes)
    up = decades([*values, *(y for _, y in curve)])
    place = [(pixel(x, across, LEFT, RIGHT), pixel(y, up, BOTTOM, TOP)) for x, y in curve]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in place)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title(result))}</title><style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text class="t" x="16" y="18">{escape(title(result))}</text>',
        f'<text x="16" y="35">dots: measured; dashes: {escape(form(result["powers"]))}</text>',
        *(grid(tick, pixel(tick, up, BOTTOM, TOP), across=False) for tick in ticks(up)),
        *(grid(tick, pixel(tick, across, LEFT, RIGHT), across=True) for tick in ticks(across)),
        f'<polyline class="l" points="{path}"/>',
        *(
            f'<circle class="p" r="4" cx="{pixel(x, across, LEFT, RIGHT):.1f}" cy="{pixel(y, up, BOTTOM, TOP):.1f}"/>'
            for x, y in result["points"]
        ),
        f'<text x="{RIGHT}" y="{BOTTOM + 38}" text-anchor="end">{escape(result["x"])}</text>',
        f'<text transform="translate(16 {BOTTOM}) rotate(-90)">{escape(UNITS[result["unit"]])}</text>',
    ]
    return "\n".join([*parts, "</svg>", ""])


def title(result: dict[str, Any]) -> str:
    return f"{result['title']} ({result['unit']}) against {result['x']}"


def form(powers: list[int]) -> str:
    """[0, 1, 2] -> "a + b x + c x²"."""
    terms = {0: "", 1: " x", 2: " x²"}
    return " + ".join(letter + terms[power] for letter, power in zip("abc", powers, strict=False))


def between(low: float, high: float, count: int) -> list[float]:
    return [low * (high / low) ** (n / (count - 1)) for n in range(count)]


def decades(values: Any) -> tuple[float, float]:
    """The ends of a logarithmic axis: the values with a margin, and at least a factor of four."""
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max(0.04 * (high - low), (0.6 - (high - low)) / 2, 0.02)
    return low - room, high + room


def pixel(value: float, ends: tuple[float, float], start: float, stop: float) -> float:
    return start + (stop - start) * (math.log10(value) - ends[0]) / (ends[1] - ends[0])


def ticks(ends: tuple[float, float]) -> list[float]:
    """Powers of ten on the axis, and 2 and 5 times them if there are few."""
    whole = range(math.floor(ends[0]), math.ceil(ends[1]) + 1)
    steps = (1,) if ends[1] - ends[0] > 3 else (1, 2, 5)
    return [m * 10.0**n for n in whole for m in steps if ends[0] <= math.log10(m * 10.0**n) <= ends[1]]


def grid(tick: float, at: float, *, across: bool) -> str:
    label = f"{tick:,.0f}" if tick >= 1 else f"{tick:g}"
    if across:
        words = f'<text x="{at:.1f}" y="{BOTTOM + 18}" text-anchor="middle">{label}</text>'
        return f'<line class="g" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{BOTTOM}"/>{words}'
    words = f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{label}</text>'
    return f'<line class="g" x1="{LEFT}" x2="{RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>{words}'


if __name__ == "__main__":
    main()

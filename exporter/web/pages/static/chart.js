// Numbers of a chart on hover and by the arrow keys. They are read from the picture itself, as docs/charts.md describes.
"use strict";
document.addEventListener("DOMContentLoaded", function () {
  for (const plot of document.querySelectorAll("figure .plot")) {
    const svg = plot.querySelector("svg");
    const output = plot.closest("figure").querySelector("output");
    const at = {};
    for (const name of ["start", "end", "left", "right", "top", "bottom", "low", "high"]) {
      at[name] = Number(svg.getAttribute("data-" + name));
    }
    const unit = svg.getAttribute("data-unit");
    const zone = svg.getAttribute("data-zone");
    const lines = [];
    for (let number = 1; number <= 8; number += 1) {
      lines.push({ label: number + ": ", points: read("n" + number) });
    }
    const points = lines.some((each) => each.points.length) ? union(lines) : read("main");
    const earlier = read("earlier");
    if (!points.length) {
      continue;
    }
    const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
    line.setAttribute("class", "cursor");
    svg.append(line);
    let current = -1;

    function read(kind) {
      const found = [];
      for (const element of svg.querySelectorAll("." + kind)) {
        const pairs = element.getAttribute("points");
        const list = pairs ? pairs.split(" ") : element.hasAttribute("cx") ? [element.getAttribute("cx") + "," + element.getAttribute("cy")] : [];
        for (const pair of list) {
          const xy = pair.split(",").map(Number);
          const value = at.low + ((at.bottom - xy[1]) / (at.bottom - at.top)) * (at.high - at.low);
          found.push({ x: xy[0], value: value });
        }
      }
      return found.sort((one, other) => one.x - other.x);
    }

    function union(all) {
      const byX = new Map();
      for (const point of all.flatMap((each) => each.points)) {
        byX.set(point.x, point);
      }
      return Array.from(byX.values()).sort((one, other) => one.x - other.x);
    }

    function nearest(list, x) {
      let best = 0;
      for (let index = 1; index < list.length; index += 1) {
        if (Math.abs(list[index].x - x) < Math.abs(list[best].x - x)) {
          best = index;
        }
      }
      return best;
    }

    function show(index) {
      current = index;
      const point = points[index];
      const seconds = at.start + ((point.x - at.left) / (at.right - at.left)) * (at.end - at.start);
      const time = new Date(Math.round(seconds / 60) * 60000).toLocaleString("sv-SE", { timeZone: zone, dateStyle: "short", timeStyle: "short" });
      let text = time + "  ";
      const numbered = lines.filter((each) => each.points.length);
      if (numbered.length) {
        const near = numbered.map((each) => ({ label: each.label, point: each.points[nearest(each.points, point.x)] }));
        const there = near.filter((each) => Math.abs(each.point.x - point.x) < 4);
        text += there.map((each) => each.label + number(each.point.value)).join("   ");
      } else {
        text += number(point.value);
      }
      if (earlier.length) {
        const other = earlier[nearest(earlier, point.x)];
        if (Math.abs(other.x - point.x) < 4) {
          text += "  (earlier " + number(other.value) + ")";
        }
      }
      output.textContent = text;
      line.setAttribute("d", "M" + point.x + " " + at.top + "V" + at.bottom);
    }

    function number(value) {
      return value.toFixed(1).replace(/\.0$/, "") + unit;
    }

    function hide() {
      output.textContent = "";
      line.removeAttribute("d");
    }

    plot.addEventListener("pointermove", function (event) {
      const box = svg.getBoundingClientRect();
      show(nearest(points, ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width));
    });
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", function (event) {
      const last = points.length - 1;
      const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -12, PageDown: 12 };
      if (event.key in steps) {
        show(current < 0 ? last : Math.min(last, Math.max(0, current + steps[event.key])));
      } else if (event.key === "Home") {
        show(0);
      } else if (event.key === "End") {
        show(last);
      } else if (event.key === "Escape") {
        hide();
      } else {
        return;
      }
      event.preventDefault();
    });
  }
});

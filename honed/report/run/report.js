"use strict";
// Shows values under the pointer (or, with the arrow keys, at a chosen step). The page is complete without it.

function nearest(xs, x) {
  let low = 0;
  let high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle;
    else high = middle;
  }
  return x - xs[low] <= xs[high] - x ? low : high;
}

function numberText(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("e+", "e");
  return value.toLocaleString("en", { maximumSignificantDigits: 4 });
}

function part(parent, name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function watch(figure) {
  const chart = JSON.parse(figure.dataset.chart);
  const plot = figure.querySelector(".plot");
  const densest = chart.series.reduce((a, b) => (b.x.length > a.x.length ? b : a));
  const cursor = part(plot, "div", "cursor");
  const box = part(plot, "div", "read-out");
  const share = (axis, value) => (value - axis[0]) / (axis[1] - axis[0]);
  let at = densest.x.length - 1;

  function hide() {
    plot.classList.remove("reading");
  }

  function show(index) {
    at = Math.max(0, Math.min(densest.x.length - 1, index));
    const step = densest.x[at];
    const left = share(chart.x, step);
    box.replaceChildren();
    part(box, "div", "read-out-step", "step " + step.toLocaleString("en"));
    plot.querySelectorAll(".pointer-dot").forEach((dot) => dot.remove());
    for (const series of chart.series) {
      const i = nearest(series.x, step);
      const aside = series.x[i] === step ? "" : " (step " + series.x[i].toLocaleString("en") + ")";
      const row = part(box, "div", "read-out-row series-" + series.colour);
      part(row, "i", "swatch");
      part(row, "span", "read-out-name", series.name);
      part(row, "b", "", numberText(series.y[i]) + aside);
      const dot = part(plot, "div", "pointer-dot series-" + series.colour);
      dot.style.left = 100 * share(chart.x, series.x[i]) + "%";
      dot.style.top = 100 * (1 - share(chart.y, series.y[i])) + "%";
    }
    cursor.style.left = 100 * left + "%";
    plot.classList.add("reading");
    const room = plot.clientWidth - box.offsetWidth;
    const beside = left < 0.5 ? left * plot.clientWidth + 12 : left * plot.clientWidth - 12 - box.offsetWidth;
    box.style.left = Math.max(0, Math.min(room, beside)) + "px";
  }

  plot.addEventListener("pointermove", (event) => {
    const frame = plot.getBoundingClientRect();
    const x = chart.x[0] + ((event.clientX - frame.left) / frame.width) * (chart.x[1] - chart.x[0]);
    show(nearest(densest.x, x));
  });
  plot.addEventListener("pointerleave", hide);
  figure.tabIndex = 0;
  figure.addEventListener("blur", hide);
  figure.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    show(at + move);
  });
}

document.querySelectorAll("figure[data-chart]").forEach(watch);

// Paper cannot be unfolded.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((fold) => (fold.open = true)));

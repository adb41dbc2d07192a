"use strict";

// Tables: a click on a title sorts by it, another one the other way round. Empty cells stay last either way.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((title, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...title.childNodes);
    title.append(button);
    const numbers = title.classList.contains("num");
    button.addEventListener("click", () => {
      const first = numbers ? "descending" : "ascending";
      const other = numbers ? "ascending" : "descending";
      const order = title.getAttribute("aria-sort") === first ? other : first;
      for (const any of table.tHead.rows[0].cells) any.removeAttribute("aria-sort");
      title.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const key = (row) => row.cells[column].dataset.value;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        return sign * (numbers ? Number(x) - Number(y) : x.localeCompare(y));
      });
      body.append(...rows);
    });
  });
}

// Curves: one slider moves a line through all of them, and their legends show the values there.
const slider = document.querySelector(".cursor-at input");
if (slider) {
  const output = document.querySelector(".cursor-at output");
  const charts = [...document.querySelectorAll("figure[data-points]")].map((figure) => {
    const points = JSON.parse(figure.dataset.points);
    const svg = figure.querySelector("svg");
    return { points, svg, line: svg.querySelector(".cursor"), values: [...figure.querySelectorAll(".legend b")] };
  });
  const show = (step) => {
    output.textContent = Number(step).toLocaleString("en");
    for (const { points, line, values } of charts) {
      let at = 0;
      points.x.forEach((x, place) => {
        if (Math.abs(x - step) < Math.abs(points.x[at] - step)) at = place;
      });
      const [low, high] = points.span;
      const [left, right] = points.plot;
      const place = left + ((points.x[at] - low) / (high - low)) * (right - left);
      line.setAttribute("x1", place);
      line.setAttribute("x2", place);
      line.removeAttribute("hidden");
      values.forEach((value, curve) => { value.textContent = points.y[curve][at]; });
    }
  };
  slider.addEventListener("input", () => show(slider.value));
  for (const { points, svg } of charts) {
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const across = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      const share = (across - points.plot[0]) / (points.plot[1] - points.plot[0]);
      const [low, high] = points.span;
      slider.value = low + Math.min(1, Math.max(0, share)) * (high - low);
      show(slider.value);
    });
  }
  slider.closest(".cursor-at").hidden = false;
}

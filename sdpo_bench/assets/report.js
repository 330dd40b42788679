"use strict";
// Click or press Enter on a column heading to sort its table; a second time reverses the order.
// Rows move within their own group only; missing values stay at the end.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.v ?? "";
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const [n, m] = [Number(x), Number(y)];
        const order = Number.isNaN(n) || Number.isNaN(m) ? (x < y ? -1 : x > y ? 1 : 0) : n - m;
        return descending ? -order : order;
      };
      for (const body of table.tBodies) {
        const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
        for (const row of rows.sort(compare)) body.append(row);
      }
    });
  });
}

const page = JSON.parse(document.getElementById("page-data").textContent);
const element = (tag, words = "", className = "") => {
  const made = document.createElement(tag);
  made.textContent = words;
  if (className) made.className = className;
  return made;
};
const short = (value) => Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });
const theme = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// The range of an axis of differences: without 0 a small difference looks large.
const end = (soft) => ({ pad: 0.1, soft, mode: 1 });
const withZero = { min: end(0), max: end(0) };

// One uPlot chart; bands are hidden lines around each line.
function drawChart(box, chart, styles, hidden) {
  const xs = [...new Set(chart.series.flatMap((line) => line.x))].sort((a, b) => a - b);
  const columns = [xs], series = [{}], bands = [];
  const place = new Map(xs.map((x, i) => [x, i]));
  const spread = (line, values) => {
    const column = new Array(xs.length).fill(null);
    line.x.forEach((x, i) => { column[place.get(x)] = values[i]; });
    return column;
  };
  for (const line of chart.series) {
    const [colour, dash] = styles[line.label];
    const show = !hidden.has(line.label), few = line.x.length <= 24;
    const joined = chart.steps || line.x.length > 2;  // two epochs show no trend
    columns.push(spread(line, line.y));
    series.push({ label: line.label, stroke: colour, width: joined ? 2 : 0, dash, spanGaps: true, show, points: { show: few, size: 6, fill: colour } });
    if (line.low) {
      const place = columns.length;
      for (const end of [line.high, line.low]) {
        columns.push(spread(line, end));
        series.push({ label: line.label, stroke: "transparent", spanGaps: true, show, points: { show: false } });
      }
      bands.push({ series: [place, place + 1], fill: colour + "22" });
    }
  }
  const ink = theme("muted"), rule = theme("rule");
  const axis = { stroke: ink, grid: { stroke: rule, width: 1 }, ticks: { stroke: rule }, font: "11px sans-serif" };
  const tip = element("div", "", "tip");
  tip.hidden = true;
  const nearest = (plot) => {
    let best = null;
    for (const line of chart.series) {
      if (hidden.has(line.label)) continue;
      line.x.forEach((x, i) => {
        if (line.y[i] === null) return;
        const far = Math.hypot(plot.valToPos(x, "x") - plot.cursor.left, plot.valToPos(line.y[i], "y") - plot.cursor.top);
        if (!best || far < best.far) best = { far, line, i };
      });
    }
    return best;
  };
  const options = {
    width: Math.max(220, box.clientWidth), height: box.closest(".panel") ? 230 : 220, legend: { show: false },
    scales: { x: chart.steps ? { time: false, distr: 3, log: 2 } : { time: false }, y: chart.zero ? { range: withZero } : {} },
    series, bands, cursor: { drag: { x: true, y: true, uni: 20 }, points: { show: false } },
    axes: [
      { ...axis, size: 30, ...(chart.steps ? { splits: () => xs, filter: (_, ticks) => ticks } : {}), values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : Math.abs(tick) >= 1000 ? `${tick / 1000}k` : `${tick}`)) },
      { ...axis, size: 54 },
    ],
    hooks: {
      draw: [(plot) => {
        if (!chart.zero) return;
        const y = plot.valToPos(0, "y", true);
        if (y < plot.bbox.top || y > plot.bbox.top + plot.bbox.height) return;
        plot.ctx.fillStyle = ink;
        plot.ctx.fillRect(plot.bbox.left, y, plot.bbox.width, 1);
      }],
      setCursor: [(plot) => {
        const found = plot.cursor.left >= 0 ? nearest(plot) : null;
        tip.hidden = !found || found.far > 40;
        if (tip.hidden) return;
        const { line, i } = found;
        const interval = line.low && line.low[i] !== null ? ` [${short(line.low[i])}, ${short(line.high[i])}]` : "";
        tip.textContent = `${line.label}\n${chart.x}: ${short(line.x[i])}\n${short(line.y[i])}${interval}`;
        tip.style.left = `${Math.min(plot.cursor.left + 60, box.clientWidth - 150)}px`;
        tip.style.top = `${plot.cursor.top + 24}px`;
      }],
    },
  };
  box.append(element("div", chart.title, "chart-title"), element("div", chart.y, "chart-axis"));
  if (chart.note) box.append(element("div", chart.note, "chart-axis"));
  const plot = new uPlot(options, columns, box);
  box.append(element("div", chart.x, "chart-axis"), tip);
  plot.labels = series.map((one) => one.label);
  return plot;
}

const MANY = 5;  // lines, from which on some can lie far from the others
// A figure: its charts, one legend of switches, and its values as a table for reading and for screen readers.
class Figure {
  constructor(box, charts, styles) {
    Object.assign(this, { box, charts, styles, hidden: new Set(), plots: [] });
    this.labels = [...new Set(charts.flatMap((chart) => chart.series.map((line) => line.label)))];
  }
  draw() {
    this.drawn = true;
    this.box.replaceChildren();
    const area = element("div", "", "charts");
    this.box.append(area);
    this.boxes = this.charts.map(() => element("div", "", "chart"));
    area.append(...this.boxes);
    this.plots = this.charts.map((chart, i) => drawChart(this.boxes[i], chart, this.styles, this.hidden));
    this.buttons = this.labels.map((label) => this.switchOf(label));
    const legend = element("div", "", "legend");
    legend.setAttribute("role", "group");
    legend.setAttribute("aria-label", "Lines to show");
    legend.append(...this.buttons);
    this.box.append(legend, this.tools());
    this.show();
  }
  switchOf(label) {
    const button = element("button"), swatch = element("canvas", "", "swatch"), [colour, dash] = this.styles[label];
    Object.assign(swatch, { width: 40, height: 16 });
    const pen = swatch.getContext("2d");
    Object.assign(pen, { strokeStyle: colour, lineWidth: 6 });
    pen.setLineDash(dash);
    pen.beginPath(); pen.moveTo(0, 8); pen.lineTo(40, 8); pen.stroke();
    button.type = "button";
    button.dataset.label = label;
    button.append(swatch, element("bdi", label));
    button.addEventListener("click", () => {
      this.hidden.has(label) ? this.hidden.delete(label) : this.hidden.add(label);
      this.show();
    });
    return button;
  }
  tools() {
    const tools = element("div", "", "tools"), zoom = element("button", "Zoom to the close lines"), all = element("button", "All lines");
    zoom.type = all.type = "button";
    zoom.addEventListener("click", () => { this.hidden = this.outliers(); this.show(); });
    all.addEventListener("click", () => { this.hidden = new Set(); this.show(); });
    const values = element("details"), summary = element("summary", "Values");
    values.append(summary);
    values.addEventListener("toggle", () => { if (values.open && values.children.length === 1) values.append(this.table()); });
    if (this.charts.some((chart) => chart.series.length >= MANY)) tools.append(zoom, " ", all);
    tools.append(values);
    return tools;
  }
  // Lines whose highest or lowest point lies far outside the middle half of all lines' ends.
  outliers() {
    const far = new Set();
    for (const chart of this.charts) {
      const ends = chart.series.map((line) => line.y.at(-1)).filter((y) => y !== null).sort((a, b) => a - b);
      if (ends.length < MANY) continue;
      const [low, high] = [ends[Math.floor(ends.length / 4)], ends[Math.floor((3 * ends.length) / 4)]];
      const reach = 1.5 * (high - low);
      for (const line of chart.series) if (line.y.at(-1) < low - reach || line.y.at(-1) > high + reach) far.add(line.label);
    }
    return far;
  }
  only(label) {
    this.hidden = new Set(label ? this.labels.filter((one) => one !== label && one !== "base model") : []);
    if (this.drawn) this.show();
  }
  show() {
    for (const plot of this.plots) {
      plot.batch(() => plot.labels.forEach((label, i) => { if (i) plot.setSeries(i, { show: !this.hidden.has(label) }); }));
    }
    for (const button of this.buttons) button.setAttribute("aria-pressed", String(!this.hidden.has(button.dataset.label)));
  }
  table() {
    const scroll = element("div", "", "values"), table = element("table"), head = table.createTHead().insertRow();
    for (const title of ["chart", "line", "x", "value", "interval"]) head.append(element("th", title));
    const body = table.createTBody();
    for (const chart of this.charts) for (const line of chart.series) line.x.forEach((x, i) => {
      const interval = line.low && line.low[i] !== null ? `${short(line.low[i])} to ${short(line.high[i])}` : "";
      const row = body.insertRow();
      for (const words of [chart.title, line.label, `${x}`, line.y[i] === null ? "" : `${line.y[i]}`, interval]) row.append(element("td", words));
    });
    scroll.append(table);
    return scroll;
  }
}

const figures = new Map();
for (const box of document.querySelectorAll(".plot")) {
  const all = page.figures[box.dataset.figure].filter((chart) => chart.series.length);
  const one = all[Math.min(box.dataset.chart ?? 0, all.length - 1)], title = box.dataset.title ?? one.title;
  const chosen = box.dataset.chart === undefined ? all : [{ ...one, title }];
  figures.set(box, new Figure(box, chosen, page.styles));
}
// Charts are drawn when they come near the screen, and again where the colour scheme changes.
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting && !figures.get(entry.target).drawn) figures.get(entry.target).draw();
}, { rootMargin: "600px" });
for (const [box, figure] of figures) box.closest(".first") ? figure.draw() : watcher.observe(box);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const figure of figures.values()) if (figure.drawn) figure.draw();
});
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  for (const figure of figures.values()) if (figure.drawn) figure.draw();
});

// Pictures: another prompt, and a slider between base model and tuned.
for (const panel of document.querySelectorAll("[data-pictures]")) {
  // The base model's pictures are in the file once, and under those of every method.
  for (const table of panel.querySelectorAll("table.tiles")) {
    const [base, ...others] = [...table.tBodies[0].rows].map((row) => [...row.querySelectorAll(".over")]);
    for (const pictures of others) {
      pictures.forEach((picture, at) => {
        const under = base[at].cloneNode();
        under.className = "under";
        under.alt = "";
        picture.before(under);
      });
    }
  }
  panel.querySelector("[data-choose]").addEventListener("change", (event) => {
    for (const table of panel.querySelectorAll("table.tiles")) table.hidden = table.dataset.prompt !== event.target.value;
  });
  panel.querySelector("[data-slide]").addEventListener("input", (event) => panel.style.setProperty("--cut", `${event.target.value}%`));
}

// Filters hide settings, rows and lines; the base model's rows stay.
const filters = document.getElementById("filters");
const chosen = () => Object.fromEntries([...filters.querySelectorAll("select")].map((one) => [one.dataset.filter, one.value]));
for (const select of filters.querySelectorAll("select")) {
  const key = select.dataset.filter;
  const values = new Set([...document.querySelectorAll(`[data-${key}]`)].map((one) => one.dataset[key]).filter(Boolean));
  values.delete("base model");
  for (const value of [...values].sort()) select.append(new Option(value, value));
  select.addEventListener("change", filter);
}
filters.hidden = false;
function filter() {
  const wanted = chosen();
  for (const part of document.querySelectorAll("[data-setting]")) {
    part.hidden = ["reward", "model", "prompts"].some((key) => wanted[key] && part.dataset[key] !== wanted[key]);
  }
  for (const row of document.querySelectorAll("tr[data-method], .dot-row, details.run")) {
    row.hidden = Boolean(wanted.method) && row.dataset.method !== wanted.method && row.dataset.method !== "base model";
  }
  for (const figure of figures.values()) figure.only(figure.labels.includes(wanted.method) ? wanted.method : "");
  const words = Object.entries(wanted).filter(([, value]) => value).map(([key, value]) => `${key} ${value}`);
  document.getElementById("filtered").textContent = words.length ? `Shown: ${words.join(", ")}` : "";
}

// A run's section is filled when it is opened, or when a link leads to it.
function fillRun(box) {
  if (box.dataset.filled) return;
  box.dataset.filled = "yes";
  const run = page.runs[box.id];
  if (run.curve[0].length) {
    const plot = element("div", "", "plot");
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", "Mean reward of each epoch's sampled images");
    box.append(plot);
    const label = box.dataset.method, style = { [label]: page.styles[label] ?? [theme("accent"), []] };
    const line = { label, x: run.curve[0], y: run.curve[1] };
    const figure = new Figure(plot, [{ title: "Training reward", x: "images sampled", y: "mean of each epoch's images", steps: false, zero: false, series: [line] }], style);
    figures.set(plot, figure);
    figure.draw();
  }
  const list = element("ul");
  for (const place of run.config) list.append(element("li", page.texts[place]));
  box.append(element("p", run.grid ? "Its pictures stand in its setting's grid." : "No stored pictures; sdpo-bench sample draws them.", "hint"), list);
}
for (const box of document.querySelectorAll("details.run")) box.addEventListener("toggle", () => { if (box.open) fillRun(box); });
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target?.matches("details")) target.open = true;
  target?.scrollIntoView();
}
addEventListener("hashchange", openTarget);
if (location.hash) openTarget();

// On paper nothing can be unfolded; runs stay folded.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details:not(.run):not(.tools details)")) folded.open = true;
  for (const figure of figures.values()) if (!figure.drawn) figure.draw();
});

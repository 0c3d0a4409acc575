"use strict";
// Draws the memory of the step and filters tables. All text goes through textContent, never innerHTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { live, order, ops, buffers, split } = data;
  const count = live.length;
  const element = (id) => document.getElementById(id);
  const chart = element("chart"), areas = element("areas"), cursor = element("cursor");
  const still = { left: 74, right: 12, top: 26, bottom: 30 };
  let grouping = "use", stacks = {}, view = [0, count], pinned = data.worst, moment = data.worst;

  function size(bytes) {
    if (Math.abs(bytes) < 1024) return `${Math.round(bytes)} B`;
    let unit = "";
    for (unit of ["KiB", "MiB", "GiB"]) {
      bytes /= 1024;
      if (Math.abs(bytes) < 1000) break;
    }
    const digits = Math.abs(bytes) < 10 ? 2 : Math.abs(bytes) < 100 ? 1 : 0;
    return `${bytes.toFixed(digits)} ${unit}`;
  }

  // What belongs to which series: by use of a buffer, or by the op that makes it.
  const groupings = {
    use: { labels: data.uses, of: (k) => buffers.use[k], work: () => data.uses.indexOf("workspace"), spare: data.uses.indexOf("temporary") },
    role: { labels: [...data.roles, "inputs"], of: (k) => buffers.op[k] < 0 ? data.roles.length : ops.role[buffers.op[k]], work: (op) => ops.role[op] },
    kind: { labels: data.kinds, of: (k) => buffers.op[k] < 0 ? data.kinds.indexOf("inputs") : ops.kind[buffers.op[k]], work: (op) => ops.kind[op] },
  };

  function stack(name) {
    if (stacks[name]) return stacks[name];
    const { labels, of, work, spare } = groupings[name];
    const series = labels.map(() => new Float64Array(count + 1));
    for (let k = 0; k < buffers.op.length; k++) {
      const s = series[of(k)];
      s[buffers.start[k]] += buffers.bytes[k];
      s[buffers.start[k] + buffers.length[k] + 1] -= buffers.bytes[k];
    }
    for (const s of series) for (let t = 1; t < count; t++) s[t] += s[t - 1];
    for (const [t, bytes] of data.workspace) series[work(order[t])][t] += bytes;
    // What an op writes over an input that dies with it is one buffer, and was counted as two.
    for (let t = 0; t < count; t++) {
      let excess = -live[t];
      for (const s of series) excess += s[t];
      const ranked = excess > 0 ? series.map((s, k) => k).sort((a, b) => series[b][t] - series[a][t]) : [];
      const first = spare ?? (excess > 0 ? work(order[t]) : 0);
      for (const k of [first, ...ranked]) {
        if (excess <= 0) break;
        const taken = Math.min(excess, series[k][t]);
        series[k][t] -= taken;
        excess -= taken;
      }
    }
    const used = series.map((s, k) => k).filter((k) => series[k].subarray(0, count).some((x) => x > 0));
    return (stacks[name] = { series: used.map((k) => series[k]), labels: used.map((k) => labels[k]), colours: used });
  }

  function style(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  // Round numbers of one unit up to a number of bytes, and their texts.
  function ticks(most) {
    const magnitude = Math.max(0, Math.min(3, Math.floor(Math.log2(Math.max(most, 1)) / 10)));
    const unit = 1024 ** magnitude, name = ["B", "KiB", "MiB", "GiB"][magnitude];
    const rough = most / unit / 4, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((x) => x * power).find((x) => x >= rough) * unit;
    const all = Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, k) => k * step);
    return all.map((bytes) => [bytes, `${Number((bytes / unit).toPrecision(6))} ${name}`]);
  }

  function scales() {
    const width = chart.clientWidth, height = chart.clientHeight;
    const [low, high] = view;
    const peak = live[data.worst] ?? 0;
    // A budget far above the peak would flatten everything below it.
    const top = 1.06 * (data.budget <= 1.5 * peak ? Math.max(peak, data.budget) : peak) || 1;
    const inner = width - still.left - still.right, tall = height - still.top - still.bottom;
    return {
      width, height, top, inner, low, high,
      x: (t) => still.left + (t - low) / (high - low) * inner,
      y: (bytes) => still.top + (1 - bytes / top) * tall,
      at: (x) => Math.max(low, Math.min(high - 1, Math.floor(low + (x - still.left) / inner * (high - low)))),
    };
  }

  function prepare(canvas, width, height) {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    return pen;
  }

  // One column for each pixel, or for each op where there is room; of a column's ops the fullest.
  function columns({ low, high, inner, x }) {
    if (high - low <= inner) {
      return Array.from({ length: high - low }, (_, k) => [x(low + k), x(low + k + 1), low + k]);
    }
    const out = [];
    for (let pixel = 0; pixel < inner; pixel++) {
      const from = low + Math.floor(pixel * (high - low) / inner);
      const to = Math.max(from + 1, low + Math.floor((pixel + 1) * (high - low) / inner));
      let best = from;
      for (let t = from; t < to && t < high; t++) if (live[t] > live[best]) best = t;
      out.push([still.left + pixel, still.left + pixel + 1, best]);
    }
    return out;
  }

  function draw() {
    const scale = scales(), { series, colours } = stack(grouping);
    if (!count || scale.inner < 10) return;
    const pen = prepare(areas, scale.width, scale.height);
    const quiet = style("--quiet"), rule = style("--rule");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const [tick, text] of ticks(scale.top)) {
      pen.fillStyle = rule;
      pen.fillRect(still.left, Math.round(scale.y(tick)), scale.inner, 1);
      pen.fillStyle = quiet;
      pen.fillText(text, still.left - 8, scale.y(tick));
    }
    const places = columns(scale), base = new Float64Array(places.length);
    series.forEach((s, k) => {
      pen.fillStyle = style(`--s${colours[k] % 9}`);
      pen.beginPath();
      places.forEach(([from, to, t], c) => {
        if (!s[t]) return;
        const lower = scale.y(base[c]), upper = scale.y(base[c] += s[t]);
        pen.rect(from, upper, to - from + 0.4, lower - upper);
      });
      pen.fill();
    });
    frame(pen, scale, quiet);
    point();
  }

  function frame(pen, scale, quiet) {
    const bottom = scale.height - still.bottom;
    pen.fillStyle = quiet;
    pen.textBaseline = "alphabetic";
    const border = Math.min(Math.max(split, scale.low), scale.high);
    for (const [from, to, text] of [[scale.low, border, "forward"], [border, scale.high, "backward"]]) {
      if (scale.x(to) - scale.x(from) < 60) continue;
      pen.textAlign = "center";
      pen.fillText(text, (scale.x(from) + scale.x(to)) / 2, bottom + 20);
    }
    if (split > scale.low && split < scale.high) {
      pen.fillRect(Math.round(scale.x(split)), still.top, 1, bottom - still.top + 8);
    }
    pen.textAlign = "right";
    if (data.budget <= scale.top) {
      pen.strokeStyle = pen.fillStyle = style("--budget");
      pen.setLineDash([6, 4]);
      pen.beginPath();
      pen.moveTo(still.left, scale.y(data.budget));
      pen.lineTo(still.left + scale.inner, scale.y(data.budget));
      pen.stroke();
      pen.setLineDash([]);
      pen.fillText(`budget ${size(data.budget)}`, still.left + scale.inner, scale.y(data.budget) - 6);
    } else {
      pen.fillText(`budget ${size(data.budget)}, above this chart`, still.left + scale.inner, 14);
    }
    if (data.worst >= scale.low && data.worst < scale.high) peakMark(pen, scale);
  }

  function peakMark(pen, scale) {
    const x = scale.x(data.worst + 0.5), y = scale.y(live[data.worst]);
    pen.fillStyle = style("--ink");
    pen.beginPath();
    pen.moveTo(x, y - 2);
    pen.lineTo(x - 5, y - 10);
    pen.lineTo(x + 5, y - 10);
    pen.fill();
    const left = x > still.left + 110;
    pen.textAlign = left ? "right" : "left";
    pen.fillText(`peak ${size(live[data.worst])}`, x + (left ? -9 : 9), y - 5);
  }

  function point() {
    const scale = scales(), pen = prepare(cursor, scale.width, scale.height);
    if (moment < scale.low || moment >= scale.high) return;
    const x = scale.x(moment + 0.5);
    pen.fillStyle = style("--cursor");
    pen.globalAlpha = 0.75;
    pen.fillRect(x - 0.5, still.top, 1, scale.height - still.top - still.bottom);
    pen.globalAlpha = 1;
    pen.beginPath();
    pen.arc(x, scale.y(live[moment]), 3.5, 0, 7);
    pen.fill();
  }

  function alive(t) {
    const found = [];
    for (let k = 0; k < buffers.op.length && buffers.start[k] <= t; k++) {
      if (buffers.start[k] + buffers.length[k] >= t) found.push(k);
    }
    return found.sort((a, b) => buffers.bytes[b] - buffers.bytes[a]);
  }

  function nameOf(k) {
    return buffers.names[k] ?? ops.name[buffers.op[k]];
  }

  function cell(row, text, kind = "td", className = "") {
    const made = row.appendChild(document.createElement(kind));
    made.textContent = text;
    made.className = className;
    if (kind === "th") made.scope = "row";
  }

  function show() {
    const op = order[moment], found = alive(moment), head = element("moment-facts");
    const facts = [
      ["moment", `${moment + 1} of ${count}, ${moment < split ? "forward" : "backward"}`],
      ["op", ops.name[op]], ["calls", data.targets[ops.target[op]]],
      ["decision", data.choices[ops.choice[op]]],
      ["line", data.sources[ops.source[op]]], ["module", data.modules[ops.module[op]]],
      ["in memory", size(live[moment])],
      [live[moment] > data.budget ? "over the budget by" : "left of the budget", size(Math.abs(data.budget - live[moment]))],
    ].filter(([, text]) => text);
    head.replaceChildren(...facts.map(([label, text]) => {
      const box = document.createElement("div");
      box.appendChild(document.createElement("dt")).textContent = label;
      box.appendChild(document.createElement("dd")).textContent = text;
      return box;
    }));
    const body = element("moment-tensors");
    body.replaceChildren();
    for (const k of found.slice(0, 8)) {
      const row = body.appendChild(document.createElement("tr")), by = buffers.op[k];
      cell(row, size(buffers.bytes[k]), "td", "number");
      cell(row, nameOf(k), "th");
      cell(row, data.uses[buffers.use[k]]);
      cell(row, by < 0 ? "an input" : data.targets[ops.target[by]]);
      cell(row, by < 0 ? "" : data.sources[ops.source[by]]);
    }
    element("moment").hidden = false;
    chart.setAttribute("aria-valuenow", moment);
    const largest = found.length ? `; largest tensor ${nameOf(found[0])}, ${size(buffers.bytes[found[0]])}` : "";
    chart.setAttribute("aria-valuetext", `${facts[0][1]}, ${ops.name[op]}, ${data.sources[ops.source[op]]}: ${size(live[moment])} in memory${largest}`);
    legend();
  }

  function legend() {
    const { series, labels, colours } = stack(grouping);
    element("legend").replaceChildren(...labels.map((label, k) => {
      const item = document.createElement("li"), mark = item.appendChild(document.createElement("i"));
      mark.style.background = `var(--s${colours[k] % 9})`;
      item.append(`${label} `);
      item.appendChild(document.createElement("span")).textContent = size(series[k][moment]);
      return item;
    }));
  }

  function go(t, pin = false) {
    moment = Math.max(0, Math.min(count - 1, t));
    if (pin) {
      pinned = moment;
      const width = view[1] - view[0];
      if (moment < view[0] || moment >= view[1]) zoom(width, moment);
    }
    point();
    show();
  }

  function zoom(width, middle) {
    width = Math.max(Math.min(20, count), Math.min(count, Math.round(width)));
    const low = Math.max(0, Math.min(count - width, Math.round(middle - width / 2)));
    view = [low, low + width];
    draw();
  }

  function keys(event) {
    const leap = Math.max(1, Math.round((view[1] - view[0]) / 20)), width = view[1] - view[0];
    const step = event.shiftKey ? leap : 1;
    const actions = {
      ArrowLeft: () => go(moment - step, true), ArrowRight: () => go(moment + step, true),
      ArrowDown: () => go(moment - step, true), ArrowUp: () => go(moment + step, true),
      PageDown: () => go(moment - leap, true), PageUp: () => go(moment + leap, true),
      Home: () => go(0, true), End: () => go(count - 1, true),
      p: () => go(data.worst, true), P: () => go(data.worst, true),
      "+": () => zoom(width / 2, moment), "=": () => zoom(width / 2, moment), "-": () => zoom(width * 2, moment),
    };
    const action = event.ctrlKey || event.metaKey || event.altKey ? undefined : actions[event.key];
    if (action) {
      event.preventDefault();
      action();
    }
  }

  function filters(input) {
    const rows = [...element(input.dataset.filters).tBodies[0].rows];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const tally = element(`${input.dataset.filters}-count`), whole = tally.textContent;
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, k) => {
        row.hidden = !words.every((word) => texts[k].includes(word));
        shown += !row.hidden;
      });
      tally.textContent = words.length ? `${shown} of ${rows.length} match` : whole;
    });
  }

  document.querySelectorAll("[data-filters]").forEach(filters);
  if (!count) return;
  chart.setAttribute("aria-valuemax", count - 1);
  chart.addEventListener("pointermove", (event) => go(scales().at(event.offsetX)));
  chart.addEventListener("pointerleave", () => go(pinned));
  chart.addEventListener("click", (event) => go(scales().at(event.offsetX), true));
  chart.addEventListener("keydown", keys);
  element("grouping").addEventListener("change", (event) => {
    grouping = event.target.value;
    draw();
    legend();
  });
  document.querySelectorAll("[data-zoom]").forEach((button) => button.addEventListener("click", () => {
    const width = view[1] - view[0];
    const widths = { all: count, peak: count / 8, in: width / 2, out: width * 2 };
    zoom(widths[button.dataset.zoom], button.dataset.zoom === "peak" ? data.worst : moment);
  }));
  new ResizeObserver(draw).observe(chart);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { draw(); legend(); });
  draw();
  show();
})();

const state = { over: "step", scale: "linear", smoothing: 0, cursor: null }; // cursor: a place on the axis
const WIDTH = 520, HEIGHT = 210, LOW = 74, LEFT = 58, RIGHT = 12, TOP = 8, BOTTOM = 24;
const COLOURS = 8;
const charts = [];

const svg = (tag, facts = {}, text = null) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(facts)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  return element;
};
const colour = (i) => `color: var(--c${i % COLOURS})`;
const held = (table, name) => (Object.hasOwn(table, name) ? table[name] : null);

// -------------------------------------------------------------------------------------- series

// One curve: what it is called, where its points are, and what those that are no numbers were.
function series(run, label, colourIndex, columns, values, lostName, dashed = false) {
  const lost = (lostName !== null && held(columns.nonfinite, lostName)) || {}, places = [];
  values.forEach((y, i) => { if (y !== null || held(lost, i) !== null) places.push(i); });
  return { run, label, colour: colourIndex, dashed, columns, values, lost, places };
}
const xOf = (one, i) => one.columns[state.over][i];
const said = (one, i) => (one.values[i] === null ? held(one.lost, i) : String(one.values[i]));
// The exponential mean of what was logged until then, without the pull to where it starts.
function smoothed(one) {
  const found = new Map();
  let sum = 0, weight = 0;
  for (const i of one.places) {
    if (one.values[i] === null) continue;
    sum = state.smoothing * sum + (1 - state.smoothing) * one.values[i];
    weight = state.smoothing * weight + (1 - state.smoothing);
    found.set(i, sum / weight);
  }
  return found;
}
// The place among `places` that is nearest to x.
function nearest(one, x) {
  let low = 0, high = one.places.length - 1;
  if (high < 0) return null;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xOf(one, one.places[middle]) < x) low = middle + 1;
    else high = middle;
  }
  if (low > 0 && x - xOf(one, one.places[low - 1]) <= xOf(one, one.places[low]) - x) low--;
  return low;
}

// --------------------------------------------------------------------------------------- axes

function ticks(low, high, count) {
  const rough = (high - low) / count, size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((x) => x * size).find((x) => x >= rough);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}
function logTicks(low, high) {
  const found = [], first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const by = Math.max(1, Math.ceil((last - first) / 5));
  for (let power = first; power <= last; power += by)
    for (const factor of last - first <= 1 ? [1, 2, 5] : last - first <= 2 ? [1, 3] : [1]) {
      const x = factor * 10 ** power;
      if (x >= low * 0.999 && x <= high * 1.001) found.push(x);
    }
  return found;
}
function short(x) {
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e5 || size < 1e-3) return x.toExponential(1).replace(".0e", "e").replace("e+", "e");
  return String(Number(x.toPrecision(4)));
}
function duration(x) {
  if (x < 1) return `${Number((1000 * x).toPrecision(3))} ms`;
  if (x < 120) return `${Number(x.toPrecision(3))} s`;
  return x < 7200 ? `${Number((x / 60).toPrecision(3))} min` : `${Number((x / 3600).toPrecision(3))} h`;
}
function timeLabel(high) {
  const [by, unit] = high < 2 ? [0.001, "ms"] : high < 300 ? [1, "s"] : high < 14400 ? [60, "min"] : [3600, "h"];
  return { by, text: (x) => `${short(x / by)} ${unit}` };
}
function xAxis() {
  let low = Infinity, high = -Infinity;
  for (const run of facts.runs) {
    const all = run.rows[state.over];
    low = Math.min(low, all[0]); high = Math.max(high, all[all.length - 1]);
  }
  if (low === high) { low -= 0.5; high += 0.5; }
  return { low, high, at: (x) => LEFT + ((x - low) / (high - low)) * (WIDTH - LEFT - RIGHT) };
}
function yAxis(all, top, bottom, fromZero) {
  let low = Infinity, high = -Infinity, positive = Infinity;
  for (const one of all)
    for (const i of one.places) {
      const y = one.values[i];
      if (y === null) continue;
      low = Math.min(low, y); high = Math.max(high, y);
      if (y > 0) positive = Math.min(positive, y);
    }
  const logarithmic = state.scale === "log" && positive < Infinity && !fromZero;
  if (low > high) { low = 0; high = 1; }
  if (logarithmic) {
    low = positive; high = Math.max(high, low);
    if (low === high) { low /= 2; high *= 2; }
    const [a, b] = [Math.log(low), Math.log(high)];
    return { ticks: logTicks(low, high), at: (y) => (y > 0 ? bottom - ((Math.log(y) - a) / (b - a)) * (bottom - top) : null) };
  }
  if (fromZero) low = Math.min(0, low);
  if (low === high) { low -= Math.abs(low) / 2 || 0.5; high += Math.abs(high) / 2 || 0.5; }
  const rim = (high - low) * 0.04;
  if (!fromZero) low -= rim;
  high += rim;
  return { ticks: ticks(low, high, (bottom - top) / 42), at: (y) => bottom - ((y - low) / (high - low)) * (bottom - top) };
}

// -------------------------------------------------------------------------------------- drawing

// A path through the points; where several fall on one column of pixels, their extremes.
function pathOf(points) {
  let text = "", column = null, kept = [], pen = "M";
  const flush = () => {
    if (!kept.length) return;
    const ys = kept.map((p) => p[1]), low = ys.indexOf(Math.min(...ys)), high = ys.indexOf(Math.max(...ys));
    for (const i of [...new Set([0, low, high, kept.length - 1])].sort((a, b) => a - b)) {
      text += `${pen}${kept[i][0].toFixed(1)} ${kept[i][1].toFixed(1)}`;
      pen = "L";
    }
    kept = [];
  };
  for (const point of points) {
    if (point === null) { flush(); pen = "M"; column = null; continue; }
    const here = Math.round(point[0]);
    if (here !== column) { flush(); column = here; }
    kept.push(point);
  }
  flush();
  return text;
}
function drawBand(root, all, x, y, area) {
  for (const tick of y.ticks) {
    const place = y.at(tick);
    root.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: place, y2: place }), svg("text", { x: LEFT - 6, y: place + 4, "text-anchor": "end" }, short(tick)));
  }
  for (const one of all) {
    const group = svg("g", { style: colour(one.colour) }), smooth = state.smoothing > 0 && area.smooth ? smoothed(one) : null;
    const point = (i, value) => {
      const place = value === null || value === undefined ? null : y.at(value);
      return place === null ? null : [x.at(xOf(one, i)), place];
    };
    const raw = one.places.map((i) => point(i, one.values[i])), dashed = one.dashed ? " dashed" : "";
    group.append(svg("path", { class: (smooth ? "raw behind" : "raw") + dashed, d: pathOf(raw) }));
    if (smooth) group.append(svg("path", { class: "smooth" + dashed, d: pathOf(one.places.map((i) => point(i, smooth.get(i)))) }));
    raw.forEach((p, k) => { // a point without neighbours is no line
      if (p !== null && !raw[k - 1] && !raw[k + 1]) group.append(svg("circle", { class: "point", cx: p[0], cy: p[1], r: 2.5 }));
    });
    for (const i of Object.keys(one.lost)) {
      const place = x.at(xOf(one, i)), low = area.bottom - 6;
      group.append(svg("path", { class: "lost", d: `M${place - 4} ${low - 4}L${place + 4} ${low + 4}M${place - 4} ${low + 4}L${place + 4} ${low - 4}` }));
    }
    root.append(group);
  }
}
function draw(chart) {
  const root = chart.root, height = chart.low ? HEIGHT + LOW : HEIGHT, bottom = HEIGHT - BOTTOM;
  root.replaceChildren();
  root.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
  chart.x = xAxis();
  const label = state.over === "step" ? { by: 1, text: short } : timeLabel(chart.x.high);
  for (const tick of ticks(chart.x.low / label.by, chart.x.high / label.by, 5).map((k) => k * label.by))
    if (tick >= chart.x.low) root.append(svg("text", { x: Math.min(chart.x.at(tick), WIDTH - RIGHT - 8), y: height - 7, "text-anchor": "middle" }, label.text(tick)));
  chart.y = yAxis(chart.all, TOP, bottom, false);
  drawBand(root, chart.all, chart.x, chart.y, { bottom, smooth: chart.smooth });
  if (chart.low) {
    const top = HEIGHT, end = height - BOTTOM;
    chart.lowY = yAxis(chart.low, top, end, true);
    const largest = Math.max(0, ...chart.low.map((one) => one.values.reduce((a, b) => Math.max(a, b ?? 0), 0)));
    chart.lowY.ticks = [...new Set([0, largest])];
    root.append(svg("text", { x: LEFT, y: top - 6 }, "weight"));
    drawBand(root, chart.low, chart.x, chart.lowY, { bottom: end, smooth: false });
  }
  chart.cursor = svg("g", { "pointer-events": "none" });
  root.append(chart.cursor);
  chart.root.setAttribute("aria-label", described(chart));
  showCursor(chart);
}
function described(chart) {
  const parts = chart.all.map((one) => {
    const known = one.places.filter((i) => one.values[i] !== null), lost = Object.keys(one.lost).length;
    if (!known.length) return `${one.label}: no number`;
    const least = known.reduce((a, b) => (one.values[b] < one.values[a] ? b : a)), last = known[known.length - 1];
    return `${one.label}: ${one.values[known[0]]} at step ${one.columns.step[known[0]]}, ${one.values[last]} at step ${one.columns.step[last]}, least ${one.values[least]} at step ${one.columns.step[least]}` + (lost ? `, ${lost} no numbers` : "");
  });
  return `${chart.title}. ${parts.join(". ")}. Arrow keys go from step to step.`;
}
function showCursor(chart) {
  chart.cursor.replaceChildren();
  const every = [...chart.all, ...(chart.low || [])];
  const known = every.filter((one) => one.places.length);
  if (state.cursor !== null && known.length) {
    const place = Math.max(LEFT, Math.min(WIDTH - RIGHT, chart.x.at(state.cursor)));
    chart.cursor.append(svg("line", { class: "cursor", x1: place, x2: place, y1: TOP, y2: (chart.low ? HEIGHT + LOW : HEIGHT) - BOTTOM }));
  }
  const at = [];
  every.forEach((one, k) => {
    const output = chart.outputs[k];
    const number = state.cursor === null ? one.places.length - 1 : nearest(one, state.cursor);
    if (number === null || number < 0) { output.textContent = "not logged"; return; }
    const i = one.places[number], value = one.values[i];
    output.textContent = said(one, i);
    output.classList.toggle("lost", value === null);
    if (k < chart.all.length) at.push([one, i]);
    if (state.cursor === null || value === null) return;
    const y = (k < chart.all.length ? chart.y : chart.lowY).at(value);
    if (y !== null) chart.cursor.append(svg("circle", { class: "held", style: colour(one.colour), cx: chart.x.at(xOf(one, i)), cy: y, r: 4 }));
  });
  const places = [...new Set(at.map(([one, i]) => `step ${one.columns.step[i]}, ${duration(one.columns.seconds[i])}`))];
  chart.at.textContent = (state.cursor === null ? "last: " : "") + places.join("; ");
}
function spoken(chart) {
  return `${chart.at.textContent}: ` + [...chart.all, ...(chart.low || [])].map((one, k) => `${one.label} ${chart.outputs[k].textContent}`).join(", ");
}
function moveCursor(x) {
  state.cursor = x;
  for (const chart of charts) showCursor(chart);
}

// --------------------------------------------------------------------------------------- charts

function addChart(box, title, all, { low = null, smooth = true } = {}) {
  const figure = make("figure"), caption = make("figcaption", {}, title);
  const root = svg("svg", { class: "chart", role: "img", tabindex: 0 });
  const chart = { title, all, low, smooth, root, at: make("p", { class: "at" }), outputs: [] };
  const legend = make("ul", { class: "legend" });
  for (const one of [...all, ...(low || [])]) {
    const item = make("li"), key = svg("svg", { width: 20, height: 8, "aria-hidden": "true", style: colour(one.colour) });
    key.append(svg("path", { d: "M0 4H20", stroke: "currentColor", "stroke-width": 2.5, fill: "none", ...(one.dashed ? { "stroke-dasharray": "6 4" } : {}) }));
    const output = make("span", { class: "value" });
    item.append(key, make("span", { class: "name" }, one.label), output);
    chart.outputs.push(output);
    legend.append(item);
  }
  figure.append(caption, root, chart.at, legend, dataOf(chart));
  box.append(figure);
  root.addEventListener("pointermove", (event) => {
    const area = root.getBoundingClientRect(), place = ((event.clientX - area.left) / area.width) * WIDTH;
    const part = Math.min(1, Math.max(0, (place - LEFT) / (WIDTH - LEFT - RIGHT)));
    const x = chart.x.low + part * (chart.x.high - chart.x.low), near = pointNear(chart, x);
    moveCursor(near === null ? x : near);
  });
  root.addEventListener("pointerleave", () => moveCursor(null));
  root.addEventListener("blur", () => moveCursor(null));
  root.addEventListener("keydown", (event) => onKey(event, chart));
  charts.push(chart);
}
// The logged place of a chart's curves that is nearest to x.
function pointNear(chart, x) {
  let best = null;
  for (const one of chart.all) {
    const k = nearest(one, x);
    if (k === null) continue;
    const here = xOf(one, one.places[k]);
    if (best === null || Math.abs(here - x) < Math.abs(best - x)) best = here;
  }
  return best;
}
function onKey(event, chart) {
  if (event.key === "Escape") return moveCursor(null);
  if (!["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
  event.preventDefault();
  const places = [...new Set(chart.all.flatMap((one) => one.places.map((i) => xOf(one, i))))].sort((a, b) => a - b);
  if (!places.length) return;
  const now = state.cursor === null ? null : pointNear(chart, state.cursor);
  let k = now === null ? (event.key === "ArrowLeft" ? places.length : -1) : places.indexOf(now);
  k = { ArrowLeft: k - 1, ArrowRight: k + 1, Home: 0, End: places.length - 1 }[event.key];
  moveCursor(places[Math.max(0, Math.min(places.length - 1, k))]);
  $("readout").textContent = spoken(chart);
}
// The table of a chart's numbers, made when it is opened.
function dataOf(chart) {
  const details = make("details"), box = make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Data of ${chart.title}` });
  details.append(make("summary", {}, "Data"), box);
  details.addEventListener("toggle", () => {
    if (!details.open || box.firstChild) return;
    const every = [...chart.all, ...(chart.low || [])];
    for (const columns of new Set(every.map((one) => one.columns))) {
      const own = every.filter((one) => one.columns === columns), rows = [...new Set(own.flatMap((one) => one.places))].sort((a, b) => a - b);
      const caption = facts.runs.length > 1 ? `${chart.title}, ${own[0].run}` : chart.title;
      box.append(table(caption, ["step", "seconds", ...own.map((one) => one.label)],
        rows.map((i) => [columns.step[i], columns.seconds[i], ...own.map((one) => said(one, i) ?? "")]), true));
    }
  });
  return details;
}
function table(caption, heads, rows, numbers = false) {
  const made = make("table", { "aria-label": caption }), head = make("thead"), body = make("tbody"), first = make("tr");
  for (const text of heads) first.append(make("th", { scope: "col", ...(numbers ? { class: "number" } : {}) }, text));
  head.append(first);
  for (const cells of rows) {
    const row = make("tr");
    cells.forEach((text, i) => row.append(i === 0 && !numbers ? make("th", { scope: "row" }, text) : make("td", numbers ? { class: "number" } : {}, text)));
    body.append(row);
  }
  made.append(head, body);
  return made;
}

// ---------------------------------------------------------------------------------------- page

const one = facts.runs.length === 1;
const names = (group, of) => [...new Set(facts.runs.flatMap((run) => Object.keys(run[of][group])))];
// The curves of one name, of every run that logged it.
function ofRuns(of, group, name, index, lostName, label, dashed = false) {
  return facts.runs.flatMap((run, i) => {
    const values = group === null ? run[of].loss : held(run[of][group], name);
    if (values === null || !values.some((x, k) => x !== null || held(held(run[of].nonfinite, lostName) || {}, k) !== null)) return [];
    const text = one ? label : label === "value" || label === "loss" ? run.label : `${run.label}: ${label}`;
    return [series(run.label, text, one ? index : i, run[of], values, lostName, dashed)];
  });
}
function buildCharts() {
  const parts = [...new Set([...names("parts", "rows"), ...names("weights", "rows")])];
  const loss = ofRuns("rows", null, "loss", 0, "loss", "loss");
  if (loss.length) addChart($("curves"), "Loss", loss);
  if (one && parts.length > 1) {
    const run = facts.runs[0], shares = parts.flatMap((name, i) => {
      const part = held(run.rows.parts, name), weight = held(run.rows.weights, name);
      if (part === null || weight === null) return [];
      const values = part.map((x, k) => (x === null || weight[k] === null ? null : Number((x * weight[k]).toPrecision(7))));
      return [series(run.label, name, i + 1, run.rows, values, null)];
    });
    if (shares.length) addChart($("curves"), "What the loss is made of: weight × part", shares);
  }
  parts.forEach((name, i) => {
    const all = ofRuns("rows", "parts", name, i + 1, `parts/${name}`, "value");
    const low = ofRuns("rows", "weights", name, i + 1, `weights/${name}`, "weight");
    if (all.length || low.length) addChart($("curves"), name, all, { low: low.length ? low : null });
  });
  for (const name of names("own", "looks")) {
    const all = [...ofRuns("looks", "own", name, 0, `own/${name}`, "own"), ...ofRuns("looks", "wrong", name, 1, `wrong/${name}`, "of others", true)];
    if (all.length) { $("readings").hidden = false; addChart($("reading-charts"), name, all, { smooth: false }); }
  }
  for (const name of names("values", "rows")) {
    const all = ofRuns("rows", "values", name, 7, `values/${name}`, "value");
    if (all.length) { $("others").hidden = false; addChart($("other-charts"), name, all); }
  }
}
function buildFindings() {
  const list = make("ul");
  for (const run of facts.runs)
    for (const found of run.findings) {
      const item = make("li", { class: found.kind });
      if (found.kind === "problem") item.append(make("b", {}, "Problem: "));
      item.append(one ? found.text : `${run.label}: ${found.text}`);
      list.append(item);
    }
  $("findings").append(list.firstChild ? list : make("p", { class: "said" }, "Nothing conspicuous: every value is finite, every term changes and has a weight."));
}
function buildTables() {
  const heads = [...new Set(facts.runs.flatMap((run) => run.summary.map(([name]) => name)))];
  const rows = heads.map((name) => [name, ...facts.runs.map((run) => (run.summary.find(([key]) => key === name) || ["", ""])[1])]);
  const about = make("div", { class: "scroll" });
  about.append(table("Run and cost", ["", ...facts.runs.map((run) => run.label)], rows.filter((row) => row.slice(1).some(Boolean))));
  $("about").append(about);
  const seen = new Map();
  for (const run of facts.runs) {
    const key = JSON.stringify([run.recipe, run.terms, run.compared]);
    if (seen.has(key)) seen.get(key).push(run);
    else seen.set(key, [run]);
  }
  for (const group of seen.values()) describeRecipe(group[0], one ? null : group.map((run) => run.label).join(", "));
}
function describeRecipe(run, label) {
  const box = $("compared");
  if (label !== null) box.append(make("h3", {}, label));
  if (run.recipe !== null) {
    box.append(make("p", { class: "said" }, `${run.recipe.name}${run.recipe.summary ? ": " + run.recipe.summary : ""}`));
    for (const [name, text] of [["Equation", run.recipe.equation], ["Omits", run.recipe.omits]])
      if (text) box.append(make("p", { class: "said" }, `${name}: ${text}`));
  }
  if (!run.terms.length) { box.append(make("p", { class: "said" }, "The log does not say: RunLog(folder, distiller) writes it.")); return; }
  const scroll = make("div", { class: "scroll" }), checks = new Map(run.compared.map((row) => [row.term, row]));
  const heads = ["term", "compares", "weight", "layers", "aligners"], more = run.compared.length ? ["student", "teacher", "counts", "value before"] : [];
  scroll.append(table("What was compared", [...heads, ...more], run.terms.map((term) => {
    const row = checks.get(term.name);
    const own = [term.name, term.on || "the student's own loss", term.weight, row && row.layers.length ? row.layers.join("; ") : term.layers, term.align || "–"];
    return more.length ? [...own, ...(row ? [row.student, row.teacher, row.counts, row.value === null ? "–" : short(row.value)] : ["", "", "", ""])] : own;
  })));
  box.append(scroll);
}
function drawAll() {
  for (const chart of charts) draw(chart);
  $("smoothing-value").textContent = state.smoothing ? String(state.smoothing) : "off";
  document.documentElement.dataset.ready = `${state.over}/${state.scale}/${state.smoothing}`;
}
function followTheme() {
  for (const frame of document.querySelectorAll("iframe")) {
    const inside = frame.contentDocument && frame.contentDocument.documentElement, theme = document.documentElement.dataset.theme;
    if (!inside) continue;
    if (theme) inside.dataset.theme = theme;
    else delete inside.dataset.theme;
  }
}
// A frame as high as what it shows, now and when that changes.
function fitFrame(frame) {
  const inside = frame.contentDocument;
  if (!inside || !inside.getElementById("theme") || frame.dataset.fitted) return;
  frame.dataset.fitted = "yes";
  inside.getElementById("theme").hidden = true; // this page's button changes both
  const fit = () => { frame.style.height = `${Math.min(1400, Math.max(200, inside.body.offsetHeight + 4))}px`; };
  new ResizeObserver(fit).observe(inside.body);
}
async function copy() {
  const text = $("bibtex").textContent;
  try {
    await navigator.clipboard.writeText(text);
    $("copied").textContent = "copied";
  } catch {
    getSelection().selectAllChildren($("bibtex"));
    $("copied").textContent = document.execCommand("copy") ? "copied" : "selected: press Ctrl+C";
  }
}
function start() {
  const labels = facts.runs.map((run) => run.label).join(", ");
  $("title").textContent = document.title = `Training report: ${labels}`;
  const long = Math.max(...facts.runs.map((run) => run.rows.step.length));
  $("smoothing").value = state.smoothing = long > 30 ? 0.6 : 0;
  buildFindings();
  buildCharts();
  buildTables();
  $("attention").hidden = !document.querySelector("#attention iframe");
  $("citation").hidden = !facts.citations;
  $("bibtex").textContent = facts.citations;
  for (const id of ["over", "scale"]) $(id).addEventListener("change", () => { state[id] = $(id).value; state.cursor = null; drawAll(); });
  $("smoothing").addEventListener("input", () => { state.smoothing = Number($("smoothing").value); drawAll(); });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("copy").addEventListener("click", copy);
  switchThemes(followTheme);
  for (const frame of document.querySelectorAll("iframe")) {
    const fit = () => { followTheme(); fitFrame(frame); };
    frame.addEventListener("load", fit);
    if (frame.contentDocument && frame.contentDocument.readyState === "complete") fit();
  }
  drawAll();
}
start();

const state = { example: 0, signal: 0, layer: 0, head: -1, teacherHead: -1, checkpoint: 0,
  pinned: [null, null], over: [null, null] };
const MEAN = -1;
let drawn = null; // the decoded layer of what is shown: {teacher, student}

// ------------------------------------------------------------------------------------- numbers

const decoded = new Map();
function bytesOf(index) {
  if (!decoded.has(index)) {
    const text = atob($("layer-" + index).textContent);
    const packed = Uint8Array.from(text, (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    decoded.set(index, new Response(stream).arrayBuffer());
  }
  return decoded.get(index);
}

// The parts of a layer stand one after another, as coding.py writes them.
async function layerOf(index, heads, klHeads) {
  const buffer = await bytesOf(index), b = facts.examples, signal = facts.signals[state.signal];
  const q = size(signal.rows), k = size(signal.keys), h = heads + 1;
  let at = 0;
  const take = (count) => { at += count; return buffer.slice(at - count, at); };
  const scales = new DataView(take(4 * b * h)), kl = new DataView(take(2 * b * klHeads * q));
  const codes = new Uint8Array(take(b * h * q * k)), counts = new Uint8Array(take(b * h * q));
  const compared = new Uint8Array(take(b * klHeads * q));
  const head = (index) => (index === MEAN ? heads : index);
  return {
    at(example, index, row, key) {
      const map = example * h + head(index), code = codes[(map * q + row) * k + key];
      return code === 255 ? NaN : scales.getFloat32(4 * map, true) * (code / facts.levels) ** 2;
    },
    counts: (example, index, row) => counts[(example * h + head(index)) * q + row] === 1,
    // null: not compared; one head of unequally many has no counterpart
    kl(example, index, row) {
      const one = index === MEAN ? klHeads - 1 : index;
      if (klHeads === 0 || one >= klHeads || (index !== MEAN && klHeads === 1)) return null;
      const place = (example * klHeads + one) * q + row;
      if (compared[place] !== 1) return null;
      const bits = new DataView(new ArrayBuffer(4));
      bits.setUint16(0, kl.getUint16(2 * place, true));
      return bits.getFloat32(0);
    },
  };
}

const signal = () => facts.signals[state.signal];
const layer = () => signal().layers[state.layer];
const size = (axis) => facts.axes[axis].labels[0].length;
const isSelf = () => signal().rows === signal().keys;
const axisOf = (end) => facts.axes[end === 0 ? signal().rows : signal().keys];
const ends = () => (isSelf() ? [0] : [0, 1]);
const boxesOf = (end) => { const a = axisOf(end); return a.boxes[a.example_boxes[state.example]]; };
const labelOf = (end, i) => axisOf(end).labels[state.example][i];
const kindOf = (end, i) => ({ t: "token", s: "special", p: "padding" })[axisOf(end).kinds[state.example][i]];
const now = (end) => state.over[end] ?? state.pinned[end];
const sides = () => (facts.has_teacher ? ["teacher", "student"] : ["student"]);
const headOf = (side) => (side === "teacher" ? state.teacherHead : state.head);
const shown = (x) => x === null ? "–" : Number.isNaN(x) ? "NaN" : x === Infinity ? "∞" : x.toFixed(3);

function pairValue(side, row, key) {
  if (side === "difference") return pairValue("student", row, key) - pairValue("teacher", row, key);
  return drawn[side].at(state.example, headOf(side), row, key);
}
function rowCounts(side, row) {
  if (side === "difference" || side === "kl") return sides().every((one) => rowCounts(one, row));
  return drawn[side].counts(state.example, headOf(side), row);
}
// The value of a token: where the current row looks, or how much each row looks at the current key.
function tokenValue(side, end, i) {
  const isKey = end === 1 || isSelf();
  const chosen = now(isKey ? 0 : 1);
  if (chosen === null) return null;
  const [row, key] = isKey ? [chosen, i] : [i, chosen];
  return rowCounts(side, row) ? pairValue(side, row, key) : null;
}
function rowKl(row) {
  if (!facts.has_teacher || (signal().kl_heads > 1 && state.head !== state.teacherHead)) return null;
  if (signal().kl_heads === 1 && (state.head !== MEAN || state.teacherHead !== MEAN)) return null;
  return drawn.student.kl(state.example, state.head, row);
}
function largestKl() {
  let most = 0;
  for (let i = 0; i < size(signal().rows); i++) {
    const x = rowKl(i);
    if (Number.isFinite(x)) most = Math.max(most, x);
  }
  return most;
}
function largestValue(side, end) {
  const names = side === "difference" ? ["difference"] : sides();
  let most = 0;
  for (const name of names)
    for (let i = 0; i < axisOf(end).labels[0].length; i++) {
      const x = Math.abs(tokenValue(name, end, i) ?? 0);
      if (Number.isFinite(x)) most = Math.max(most, x);
    }
  return most;
}

// -------------------------------------------------------------------------------------- colours

const HEAT = [[34, 38, 44, 0], [91, 42, 134, 0.5], [228, 87, 46, 0.68], [255, 224, 102, 0.76]];
function heat(part) {
  const place = Math.min(Math.max(part, 0), 1) * (HEAT.length - 1), low = Math.min(Math.floor(place), HEAT.length - 2);
  const mixed = HEAT[low].map((x, i) => x + (HEAT[low + 1][i] - x) * (place - low));
  return `rgba(${mixed.slice(0, 3).map(Math.round)},${mixed[3].toFixed(3)})`;
}
function colour(side, value, most) {
  if (Number.isNaN(value)) return "rgba(255,0,255,0.8)";
  const part = most > 0 ? value / most : 0;
  if (side !== "difference") return heat(part);
  return part < 0 ? `rgba(47,140,255,${0.85 * -part})` : `rgba(255,122,26,${0.85 * part})`;
}
const klColour = (x, most) => `rgba(var(--kl),${Number.isFinite(x) ? (most > 0 ? (0.75 * x) / most : 0) : 0.95})`;

// --------------------------------------------------------------------------------------- tokens

const isPlaced = (end, i) => boxesOf(end)[i] !== null;
function listed() {
  const found = [];
  for (const end of ends())
    axisOf(end).labels[state.example].forEach((_, i) => { if (!isPlaced(end, i) && !(axisOf(end).modality !== "text" && kindOf(end, i) === "padding")) found.push([end, i]); });
  return found.sort(([a, i], [b, j]) => (axisOf(a).modality === "text" ? 0 : 1) - (axisOf(b).modality === "text" ? 0 : 1) || i - j);
}
function buildTable() {
  const body = $("tokens").tBodies[0];
  body.replaceChildren();
  for (const [end, i] of listed()) {
    const row = make("tr", { "data-end": end, "data-index": i, class: kindOf(end, i) });
    const name = make("th", { scope: "row" }), button = make("button", { type: "button", tabindex: -1 }, labelOf(end, i));
    button.title = labelOf(end, i);
    name.append(button);
    row.append(name, make("td", { class: "kl" }), make("td", { class: "teacher" }), make("td", { class: "student" }));
    row.addEventListener("mouseenter", () => hover(end, i));
    row.addEventListener("mouseleave", () => hover(end, null));
    button.addEventListener("focus", () => hover(end, i));
    button.addEventListener("blur", () => hover(end, null));
    button.addEventListener("click", () => pin(end, i));
    body.append(row);
  }
  const first = body.querySelector("button");
  if (first) first.tabIndex = 0;
  $("words").hidden = !first;
  $("side").hidden = !first && !facts.has_teacher;
}
$("tokens").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const buttons = [...$("tokens").querySelectorAll("button")];
  const next = buttons[buttons.indexOf(document.activeElement) + step];
  event.preventDefault();
  if (!next) return;
  for (const one of buttons) one.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
function drawTable() {
  const mostKl = largestKl();
  const most = ends().map((end) => largestValue("student", end));
  for (const row of $("tokens").tBodies[0].rows) {
    const end = Number(row.dataset.end), i = Number(row.dataset.index), isRow = end === 0;
    const kl = isRow ? rowKl(i) : null;
    const out = isRow && !sides().every((one) => rowCounts(one, i));
    const [, cell, ...values] = row.cells;
    row.classList.toggle("now", now(end) === i);
    row.classList.toggle("pinned", state.pinned[end] === i);
    row.classList.toggle("out", out);
    row.cells[0].firstChild.setAttribute("aria-pressed", state.pinned[end] === i);
    row.cells[0].firstChild.setAttribute("aria-label", describe(end, i));
    cell.textContent = out ? "not counted" : isRow ? shown(kl) : "";
    cell.style.backgroundColor = kl === null ? "" : klColour(kl, mostKl);
    for (const value of values) {
      const x = facts.has_teacher || value.className === "student" ? tokenValue(value.className, end, i) : null;
      value.textContent = x === null ? "" : shown(x);
      const width = x === null || !most[end] ? 0 : (100 * x) / most[end];
      value.style.backgroundImage = width ? `linear-gradient(var(--${value.className}),var(--${value.className}))` : "none";
      value.style.backgroundSize = `${width}% 3px`;
      value.style.backgroundPosition = "right bottom";
    }
  }
  for (const cell of document.querySelectorAll("#tokens .kl")) cell.hidden = !facts.has_teacher || axisOf(0).modality !== "text" && !listed().some(([end]) => end === 0);
  for (const cell of document.querySelectorAll("#tokens .teacher")) cell.hidden = !facts.has_teacher;
}
function describe(end, i) {
  const kind = kindOf(end, i), words = [labelOf(end, i)];
  if (kind !== "token") words.push(kind);
  if (end === 0 && !sides().every((one) => rowCounts(one, i))) words.push("does not count");
  else if (end === 0 && rowKl(i) !== null) words.push("KL " + shown(rowKl(i)));
  return words.join(", ");
}

// -------------------------------------------------------------------------------------- pictures

const pictureEnd = () => ends().find((end) => boxesOf(end).some((box) => box !== null));
const TITLES = { teacher: "Teacher", student: "Student", difference: "Student − teacher", kl: "KL of each patch's row", image: "Image" };
function buildPanels() {
  const panels = $("panels");
  panels.replaceChildren();
  const end = pictureEnd();
  if (end === undefined) return;
  const names = [...sides(), ...(facts.has_teacher ? ["difference"] : []), ...(facts.has_teacher && end === 0 ? ["kl"] : [])];
  if (facts.shown !== null) names.unshift("image");
  const own = facts.shown === null ? null : facts.shown[state.example];
  const count = own === null ? 1 + Math.max(...boxesOf(end).filter(Boolean).map((box) => box[0])) : own.length;
  for (const side of names) {
    const figure = make("figure", { "data-side": side }), pictures = make("div", { class: "pictures" });
    figure.append(make("figcaption", {}, TITLES[side]), pictures);
    for (let number = 0; number < count; number++) {
      const box = make("div", { class: "picture" + (side === "image" ? " plain" : ""), tabindex: side === "image" ? -1 : 0, role: "group",
        "aria-roledescription": "picture of patches", "aria-label": `${TITLES[side]}, picture ${number + 1}; arrow keys move over the patches, Enter keeps one` });
      const image = make("img", { alt: "" });
      if (own === null) { image.width = 96; image.height = 96; image.src = blank(); }
      else {
        const shown = facts.pictures[own[number]];
        image.src = shown.source; image.width = shown.width; image.height = shown.height;
        image.alt = `picture ${number + 1} of example ${state.example + 1}`;
        if (shown.pixelated) image.className = "pixelated";
      }
      image.style.height = "auto";
      box.append(image, make("canvas", { "aria-hidden": "true" }));
      box.addEventListener("mousemove", (event) => hover(end, patchAt(box, end, number, event)));
      box.addEventListener("mouseleave", () => hover(end, null));
      box.addEventListener("click", (event) => { const i = patchAt(box, end, number, event); if (i !== null) pin(end, i); });
      box.addEventListener("keydown", (event) => moveOver(event, end, number));
      box.addEventListener("focus", () => render());
      box.addEventListener("blur", () => hover(end, null));
      image.addEventListener("load", () => render());
      box.dataset.number = number;
      pictures.append(box);
    }
    if (side !== "image") {
      const legend = make("div", { class: "legend" });
      legend.append(make("span", { class: "low" }, "0"), make("i"), make("span", { class: "high" }));
      figure.append(legend);
    }
    figure.append(make("p", { class: "state" }));
    panels.append(figure);
  }
}
function blank() {
  const canvas = make("canvas");
  canvas.width = canvas.height = 2;
  return canvas.toDataURL();
}
function patchAt(box, end, number, event) {
  const area = box.getBoundingClientRect();
  const x = (event.clientX - area.left) / area.width, y = (event.clientY - area.top) / area.height;
  const found = boxesOf(end).findIndex((one) => one !== null && one[0] === number && y >= one[1] && x >= one[2] && y < one[3] && x < one[4]);
  return found < 0 ? null : found;
}
function moveOver(event, end, number) {
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }, boxes = boxesOf(end);
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    if (now(end) !== null) pin(end, now(end));
  }
  if (!(event.key in steps)) return;
  event.preventDefault();
  const here = boxes.map((box, i) => [box, i]).filter(([box]) => box !== null && box[0] === number);
  const current = now(end) !== null && boxes[now(end)] !== null && boxes[now(end)][0] === number ? boxes[now(end)] : null;
  if (current === null) return hover(end, here[0][1]);
  const middle = (box) => [(box[1] + box[3]) / 2, (box[2] + box[4]) / 2];
  const [y, x] = middle(current), [dy, dx] = steps[event.key];
  let best = null, least = Infinity;
  for (const [box, i] of here) {
    const [v, u] = middle(box), along = (v - y) * dy + (u - x) * dx, aside = Math.abs((v - y) * dx) + Math.abs((u - x) * dy);
    if (along > 1e-6 && along + 4 * aside < least) { least = along + 4 * aside; best = i; }
  }
  if (best !== null) hover(end, best);
}
function drawPanels() {
  const end = pictureEnd();
  for (const figure of $("panels").children) {
    const side = figure.dataset.side, isKl = side === "kl";
    const most = isKl ? largestKl() : side === "image" ? 0 : largestValue(side, end);
    for (const box of figure.querySelectorAll(".picture")) drawPicture(box, side, end, most);
    const chosen = now(end === 1 || isSelf() ? 0 : 1), label = figure.querySelector(".state");
    if (side === "image") { label.textContent = ""; continue; }
    figure.querySelector(".high").textContent = shown(most);
    figure.querySelector(".low").textContent = side === "difference" ? shown(-most) : "0";
    const out = !isKl && chosen !== null && (end === 1 || isSelf()) && !rowCounts(side, chosen);
    label.textContent = out ? "this row does not count" : isKl ? "" : chosen === null ? hint(end) : direction(end, chosen);
    figure.querySelector(".pictures").classList.toggle("hatched", out);
  }
}
function hint(end) {
  return end === 1 || isSelf() ? "choose a token to see where it looks" : "choose a word to see what looks at it";
}
function direction(end, chosen) {
  const from = end === 1 || isSelf();
  const name = labelOf(from ? 0 : 1, chosen);
  return from ? `where “${name}” looks` : `what looks at “${name}”`;
}
function drawPicture(box, side, end, most) {
  const canvas = box.querySelector("canvas"), number = Number(box.dataset.number), ratio = window.devicePixelRatio || 1;
  const width = Math.round(box.clientWidth * ratio), height = Math.round(box.clientHeight * ratio);
  canvas.width = width; canvas.height = height;
  const pen = canvas.getContext("2d");
  boxesOf(end).forEach((one, i) => {
    if (one === null || one[0] !== number) return;
    const area = [one[2] * width, one[1] * height, (one[4] - one[2]) * width, (one[3] - one[1]) * height];
    const value = side === "image" ? null : side === "kl" ? rowKl(i) : tokenValue(side, end, i);
    if (value !== null) { pen.fillStyle = colour(side, value === Infinity ? most || 1 : value, most || (value === Infinity ? 1 : 0)); pen.fillRect(...area); }
    pen.strokeStyle = "rgba(255,255,255,0.16)"; pen.lineWidth = 1; pen.strokeRect(...area);
  });
  for (const [i, style, dash] of [[state.pinned[end], "#ffffff", [5, 4]], [state.over[end], "#ffffff", []]]) {
    const one = i === null ? null : boxesOf(end)[i];
    if (!one || one[0] !== number) continue;
    const area = [one[2] * width, one[1] * height, (one[4] - one[2]) * width, (one[3] - one[1]) * height];
    pen.setLineDash([]); pen.strokeStyle = "#000000"; pen.lineWidth = 4 * ratio; pen.strokeRect(...area);
    pen.setLineDash(dash); pen.strokeStyle = style; pen.lineWidth = 2 * ratio; pen.strokeRect(...area);
  }
}

// -------------------------------------------------------------------------------------- overview

function buildOverview() {
  const grid = $("grid");
  grid.replaceChildren();
  $("overview").hidden = !facts.has_teacher;
  if (!facts.has_teacher) return;
  const heads = signal().kl_heads, head = make("tr");
  head.append(make("th", { scope: "col" }, "layer"));
  for (let i = 0; i < heads; i++) head.append(make("th", { scope: "col" }, i === heads - 1 ? "mean" : i + 1));
  grid.append(head);
  const numbers = signal().layers.map((one) => one.means[state.checkpoint][state.example]);
  const most = Math.max(0, ...numbers.flat().map(Number).filter(Number.isFinite));
  signal().layers.forEach((one, number) => {
    const row = make("tr");
    row.append(make("th", { scope: "row" }, one.label));
    numbers[number].forEach((x, i) => {
      const index = i === heads - 1 ? MEAN : i, cell = make("td");
      const text = `layer ${one.label}, ` + (index === MEAN ? "mean of the heads" : `head ${i + 1}`) + ": " + (x === null ? "no row counts" : `KL ${x}`);
      const button = make("button", { type: "button", tabindex: -1, title: text, "aria-label": text });
      button.style.backgroundColor = x === null ? "" : klColour(Number(x), most);
      if (x === null) button.className = "hatched";
      button.classList.toggle("now", number === state.layer && index === state.head);
      button.addEventListener("click", () => { state.layer = number; state.head = state.teacherHead = index; choose(); });
      cell.append(button);
      row.append(cell);
    });
    grid.append(row);
  });
}

// ------------------------------------------------------------------------------------- what to do

function hover(end, i) {
  if (state.over[end] === i) return;
  state.over[end] = i;
  render();
}
function pin(end, i) {
  state.pinned[end] = state.pinned[end] === i ? null : i;
  render();
}
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  state.pinned = [null, null]; state.over = [null, null];
  render();
});
function readout() {
  let [row, key] = [now(0), isSelf() ? null : now(1)];
  if (isSelf() && state.over[0] !== null && state.pinned[0] !== null) [row, key] = [state.pinned[0], state.over[0]];
  if (row === null && key === null) return "Choose a word or a patch: hover, or Tab and the arrow keys; a click or Enter keeps it.";
  if (row === null) return `“${labelOf(1, key)}”: how much each row looks at it`;
  const name = labelOf(0, row), kl = rowKl(row);
  if (!sides().some((side) => rowCounts(side, row))) return `“${name}” does not count (${kindOf(0, row)})`;
  if (key === null) return `“${name}”` + (kl === null ? "" : `: KL ${shown(kl)} from the teacher`);
  const values = sides().map((side) => `${side} ${rowCounts(side, row) ? shown(pairValue(side, row, key)) : "not counted"}`);
  if (facts.has_teacher && rowCounts("difference", row)) values.push(`difference ${shown(pairValue("difference", row, key))}`);
  return `“${name}” → “${labelOf(isSelf() ? 0 : 1, key)}”: ` + values.join(" · ");
}
function render() {
  if (drawn === null) return;
  drawTable();
  drawPanels();
  const text = readout();
  if ($("readout").textContent !== text) $("readout").textContent = text;
}
const headNames = (count) => [[MEAN, "mean of all"], ...Array.from({ length: count }, (_, i) => [i, String(i + 1)])];
let asked = 0;
// Everything that a control changes: the pickers, the decoded layer, the tables and the pictures.
async function choose() {
  const mine = ++asked;
  state.layer = Math.min(state.layer, signal().layers.length - 1);
  const unequal = facts.has_teacher && layer().teacher_heads !== layer().student_heads;
  state.head = state.head < layer().student_heads ? state.head : MEAN;
  if (!unequal) state.teacherHead = state.head;
  else if (state.teacherHead >= layer().teacher_heads) state.teacherHead = MEAN;
  fill($("layer"), signal().layers.map((one, i) => [i, one.label]), state.layer);
  fill($("head"), headNames(layer().student_heads), state.head);
  $("head-name").textContent = unequal ? "Student's head" : "Head";
  $("teacher-head-box").hidden = !unequal;
  if (unequal) fill($("teacher-head"), headNames(layer().teacher_heads), state.teacherHead);
  $("checkpoint-name").textContent = facts.checkpoints[state.checkpoint];
  $("checkpoint").setAttribute("aria-valuetext", facts.checkpoints[state.checkpoint]);
  const student = layerOf(layer().students[state.checkpoint], layer().student_heads, signal().kl_heads);
  const teacher = facts.has_teacher ? layerOf(layer().teacher, layer().teacher_heads, 0) : null;
  const next = { student: await student, teacher: await teacher };
  if (mine !== asked) return;
  const fresh = drawn === null || state.key !== `${state.example}/${state.signal}`;
  drawn = next;
  if (fresh) {
    state.key = `${state.example}/${state.signal}`;
    state.over = [null, null];
    state.pinned = [firstRow(), null];
    buildTable();
    buildPanels();
  }
  buildOverview();
  render();
  document.documentElement.dataset.ready = `${state.example}/${state.signal}/${state.layer}/${state.head}/${state.teacherHead}/${state.checkpoint}`;
}
// The row that is least like the teacher's, so that a page opens on something to see.
function firstRow() {
  let best = null, most = -1;
  for (let i = 0; i < size(signal().rows); i++) {
    if (kindOf(0, i) === "padding" || !sides().every((one) => rowCounts(one, i))) continue;
    const kl = rowKl(i) ?? 0;
    if (kl > most) { most = kl; best = i; }
  }
  return best;
}
function start() {
  if (facts.examples === 0) { $("readout").textContent = "There is no example to show."; return; }
  fill($("example"), Array.from({ length: facts.examples }, (_, i) => [i, String(i + 1)]), 0);
  fill($("signal"), facts.signals.map((one, i) => [i, one.name.replace("attention.", "").replaceAll("_", " ")]), 0);
  $("checkpoint-box").hidden = facts.checkpoints.length < 2;
  $("checkpoint").max = facts.checkpoints.length - 1;
  state.checkpoint = facts.checkpoints.length - 1;
  $("checkpoint").value = state.checkpoint;
  for (const [id, name] of [["example", "example"], ["signal", "signal"], ["layer", "layer"], ["head", "head"], ["teacher-head", "teacherHead"], ["checkpoint", "checkpoint"]])
    $(id).addEventListener(id === "checkpoint" ? "input" : "change", () => { state[name] = Number($(id).value); choose(); });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  switchThemes();
  window.addEventListener("resize", render);
  $("notes").append(
    make("p", {}, `Probabilities are exact to ±${facts.tolerance.toPrecision(2)}, divergences to 0.4 %. Hatched rows do not count for a loss.` +
      (facts.has_teacher ? " KL is in nats, of the whole row." : "")),
    ...facts.notes.map((note) => make("p", {}, note)));
  choose().catch((error) => { $("readout").textContent = `The page cannot be read: ${error.message}`; });
}
start();

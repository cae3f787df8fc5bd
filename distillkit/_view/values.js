const state = { example: 0, signal: 0, layer: 0, head: -1, teacherHead: -1, checkpoint: 0,
  pinned: [null, null], over: [null, null] };
const MEAN = -1;
let drawn = null; // the decoded layer of what is shown: {teacher, student}

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
const shown = (x) => x === null ? "–" : Number.isNaN(x) ? "NaN" : x === Infinity ? "∞" : x.toFixed(3).replace(/^-(?=0\.000$)/, "");

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


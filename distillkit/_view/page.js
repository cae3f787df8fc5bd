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
      button.addEventListener("click", () => { state.layer = number; state.head = state.teacherHead = index; draw(); });
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
  const student = layerOf(layer().students[state.checkpoint]);
  const teacher = facts.has_teacher ? layerOf(layer().teacher) : null;
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
const draw = () => choose().catch((error) => { $("readout").textContent = `The page cannot be read: ${error.message}`; });
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
    $(id).addEventListener(id === "checkpoint" ? "input" : "change", () => { state[name] = Number($(id).value); draw(); });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  switchThemes();
  window.addEventListener("resize", render);
  $("notes").append(
    make("p", {}, `Probabilities are exact to ±${facts.tolerance.toPrecision(2)}, and to ±${(100 * facts.relative).toPrecision(2)} % of the largest of their row; ` +
      "divergences to 0.4 %. Hatched rows do not count for a loss." +
      (facts.has_teacher ? " KL is in nats, of the whole row." : "")),
    ...facts.notes.map((note) => make("p", {}, note)));
  draw();
}
start();

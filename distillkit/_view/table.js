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
  // values stand here when what looks at a patch, or what a patch looks at, is chosen
  const end = pictureEnd(), direction = end === 1 ? "how much each word looks at it" : "which words it looks at";
  $("words-hint").textContent = end === undefined || isSelf() ? "" : `A patch fills ${sides().map((one) => TITLES[one]).join(" and ")}: ${direction}.`;
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


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
    figure.querySelector(".legend").style.visibility = isKl || chosen !== null ? "" : "hidden";
    const out = !isKl && chosen !== null && (end === 1 || isSelf()) && !rowCounts(side, chosen);
    label.title = label.textContent = out ? "this row does not count" : isKl ? "" : chosen === null ? hint(end) : direction(end, chosen);
    figure.querySelector(".pictures").classList.toggle("hatched", out);
  }
}
function hint(end) {
  return end === 1 || isSelf() ? "choose a token" : "choose a word";
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


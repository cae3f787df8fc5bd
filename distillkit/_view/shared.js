"use strict";
// Every text of the caller reaches the page by textContent or as an attribute's value, never as HTML.
const $ = (id) => document.getElementById(id);
const facts = JSON.parse($("facts").textContent);
function make(tag, facts = {}, text = null) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  return element;
}
function fill(select, names, value) {
  select.replaceChildren(...names.map(([key, text]) => make("option", { value: key }, text)));
  select.value = value;
}
// A button that goes from the system's theme to light, dark, and back; `also` hears of it.
function switchThemes(also = () => {}) {
  const themes = ["system", "light", "dark"];
  let theme = 0;
  $("theme").addEventListener("click", () => {
    theme = (theme + 1) % themes.length;
    $("theme").textContent = "Theme: " + themes[theme];
    if (theme === 0) delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = themes[theme];
    also();
  });
}

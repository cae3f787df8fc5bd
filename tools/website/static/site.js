/* Fills the list of versions from versions.js beside the versions' folders, which `make docs` writes. */
document.addEventListener("DOMContentLoaded", () => {
  const choice = document.getElementById("version-choice");
  const known = window.DISTILLKIT_VERSIONS;
  if (!choice || !known) return;
  const { root, page, version } = choice.dataset;
  choice.replaceChildren(
    ...known.versions.map((one) => {
      const note = one.version === known.newest ? " (newest)" : "";
      return new Option(one.version + note, one.version, false, one.version === version);
    }),
  );
  choice.addEventListener("change", () => {
    const wanted = known.versions.find((one) => one.version === choice.value);
    const file = `${page}.html`;
    const target = wanted.pages.includes(file) ? file : "index.html";
    location.href = `${root}../${encodeURIComponent(wanted.version)}/${target}`;
  });
});

/* A page opened from disk may not read the other pages, of which the search would show excerpts. */
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

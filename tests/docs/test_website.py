"""What the site is made of: pages, links that leave them, the API, notebooks and versions."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path, PurePosixPath

import pytest

from distillkit import losses
from tools import public_api
from tools.website import api, gallery, notebooks, pages, signatures, stage, versions

ROOT = Path(__file__).parents[2]
# The notebooks that run here, and how long; the scripts of all are run by tests/examples and
# tests/test_documents.py.
QUICKLY = {
    "attention_map": ("--steps", "2"),
    "clip_kd": ("--teacher-steps", "2", "--steps", "2", "--seeds", "1"),
    "dide_transformers": ("--teacher-steps", "2", "--steps", "2"),
    "fused_attention": (),
}
SCRIPTS = notebooks.examples()


def described():
    """Every object that the pages of the API describe, by its full name."""
    for _, text in api.pages(public_api.MODULES):
        module, owner = "", ""
        for line in text.splitlines():
            if found := re.match(r"\.\. currentmodule:: (\S+)", line):
                module = found[1]
            elif found := re.match(r"\.\. (?:autoclass|autofunction|py:data):: (\S+)", line):
                owner = f"{module}.{found[1]}"
                yield owner
            elif found := re.match(r"   \.\. auto(?:method|property|attribute):: (\S+)", line):
                yield f"{owner}.{found[1]}"


def in_the_inventory():
    """Every name of ``tests/public_api.txt`` with its members, but those that Python calls."""
    text = public_api.INVENTORY.read_text(encoding="utf-8")
    parts = re.split(r"^(distillkit[\w.]*)\n=+\n", text, flags=re.MULTILINE)[1:]
    for module, part in zip(parts[::2], parts[1::2], strict=True):
        owner = ""
        for line in part.splitlines():
            if found := re.match(r"(?:class |def )?([A-Za-z]\w*)(?=[:(]|$)", line):
                owner = f"{module}.{found[1]}"
                yield owner
            elif found := re.match(r"    (?:def|classmethod|property) ([a-z]\w*)", line):
                yield f"{owner}.{found[1]}"


def test_every_public_name_is_in_the_reference():
    wanted = set(in_the_inventory())
    assert {
        "distillkit.Attention.scores",
        "distillkit.losses.mse",
        "distillkit.testing.TAGS",
    } <= wanted
    assert len(wanted) > 300
    assert wanted - set(described()) == set()


def test_a_module_without_a_topic_is_an_error(monkeypatch):
    monkeypatch.setitem(api.TOPICS, "distillkit.losses", {"features": ("Vectors", ("_feature",))})
    with pytest.raises(ValueError, match=r"'_\w+', where \w+ is written: add it to TOPICS"):
        list(api.pages(["distillkit.losses"]))


def test_signatures_are_those_of_the_code_without_private_names():
    assert signatures.signature_of(losses.kl_divergence) == (
        "(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, where: Tensor | None = None)",
        "Tensor",
    )
    shown, _ = signatures.signature_of(api.importlib.import_module("distillkit").Schedule)
    assert "Annotated" not in shown
    assert "until: float = 1.0" in shown
    assert signatures.signature_of(ValueError) is None


def test_links_lead_to_pages_files_and_the_repository():
    shown = set()
    file = PurePosixPath("plugins/distillkit-transformers/README.md")
    text = pages.staged(file, pages.page_of(file), shown.add)
    assert "(../how-to/repeat-the-paper.md)" in text
    assert "(../index.md)" in text
    assert shown == set()
    guide = PurePosixPath("docs/how-to/prove-your-loss.md")
    text = pages.staged(guide, pages.page_of(guide), shown.add)
    assert "(../examples/invent_a_loss_py.md)" in text
    assert shown == {PurePosixPath("examples/invent_a_loss.py")}
    assert "<!--" not in text


def test_every_page_of_the_repository_is_on_the_site():
    found = {str(file): str(page) for file, page in pages.sources().items()}
    assert found["docs/index.md"] == "index.md"
    assert found["examples/write_a_plugin/README.md"] == "examples/write_a_plugin.md"
    assert (
        found["plugins/distillkit-lightning/CHANGELOG.md"]
        == "plugins/distillkit-lightning-changelog.md"
    )
    assert len(set(found.values())) == len(found)
    guides = {f"docs/how-to/{file.name}" for file in ROOT.glob("docs/how-to/*.md")}
    assert guides <= set(found)
    for section in stage.SECTIONS:
        listed = stage.section_page(section, pages.sources())
        for page in found.values():
            if PurePosixPath(page).parts[0] == section:
                assert f"]({PurePosixPath(page).name})**" in listed


def test_a_staged_folder_keeps_what_stays_and_loses_what_is_gone(tmp_path):
    first = stage.Staging(tmp_path)
    first.write(PurePosixPath("a/b.md"), "one")
    first.write(PurePosixPath("c.md"), "two")
    before = (tmp_path / "a/b.md").stat().st_mtime_ns
    second = stage.Staging(tmp_path)
    second.write(PurePosixPath("a/b.md"), "one")
    second.remove_others()
    assert (tmp_path / "a/b.md").stat().st_mtime_ns == before
    assert not (tmp_path / "c.md").exists()


def test_a_gallery_frames_each_viewer(tmp_path):
    with pytest.raises(FileNotFoundError, match="run make gallery"):
        list(gallery.pages(tmp_path))
    (tmp_path / "one.html").write_text("<p>", encoding="utf-8")
    listed = [{"file": "one.html", "title": "One", "text": "What it shows."}]
    (tmp_path / "gallery.json").write_text(json.dumps(listed), encoding="utf-8")
    made = {str(path): content.decode() for path, content in gallery.pages(tmp_path)}
    assert made["_static/gallery/one.html"] == "<p>"
    assert 'sandbox="allow-scripts" src="../_static/gallery/one.html"' in made["gallery/one.md"]
    assert "[One](one.md)" in made["gallery/index.md"]


@pytest.mark.filterwarnings("ignore")  # of libraries that the examples use
@pytest.mark.parametrize("name", QUICKLY)
def test_a_notebook_runs(name, tmp_path, monkeypatch, capsys):
    script = ROOT / f"examples/{name}.py"
    notebook = notebooks.notebook_of(script)
    *cells, last = [
        "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"
    ]
    assert last == notebooks.run_cell(script)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    module = type(sys)("__main__")  # classes of the notebook name it
    module.__doc__ = "A notebook."
    monkeypatch.setitem(sys.modules, "__main__", module)
    for cell in [*cells, notebooks.run_cell(script, *QUICKLY[name])]:
        exec(compile(cell, script.name, "exec"), vars(module))
    assert capsys.readouterr().out.strip()


@pytest.mark.skipif(
    importlib.util.find_spec("nbformat") is None, reason="needs nbformat: make docs"
)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_has_the_format_of_jupyter(script):
    import nbformat

    nbformat.validate(nbformat.reads(notebooks.text_of(script), as_version=4))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_holds_every_line_of_its_script(script):
    text = script.read_text(encoding="utf-8")
    cells = list(notebooks.code_cells(text))
    assert "import" in cells[0]
    assert cells[-1].startswith("def main(")
    body = text[text.index('"""', 3) + 3 : text.index("if __name__")]
    assert "\n".join(cells).split() == body.split()


def test_an_example_that_imports_another_is_no_notebook():
    assert ROOT / "examples/vlm_kd.py" in SCRIPTS
    assert ROOT / "examples/on_policy.py" not in SCRIPTS


def test_decorators_and_comments_stay_with_what_they_are_about():
    text = '"""D."""\n\nA = 1\n\n\n# why\n@cache\ndef f(): ...\n\n\nB = 2\n\n\nif __name__ == "__main__":\n    main()\n'
    assert list(notebooks.code_cells(text)) == ["A = 1", "# why\n@cache\ndef f(): ...", "B = 2"]


def test_an_example_without_main_is_an_error(tmp_path):
    script = tmp_path / "x.py"
    script.write_text('"""D."""\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.py: an example that becomes a notebook .* main\(\)"):
        notebooks.notebook_of(script)


packaging = pytest.mark.skipif(
    importlib.util.find_spec("packaging") is None, reason="needs packaging"
)


@packaging
def test_the_newest_release_comes_first(tmp_path):
    with pytest.raises(ValueError, match="holds no version: build one with make docs"):
        versions.write_list(tmp_path)
    for name in ("0.2.0", "0.10.0", "0.11.0.dev0", "pictures"):
        (tmp_path / name / "api").mkdir(parents=True)
        (tmp_path / name / "api/x.html").write_text("", encoding="utf-8")
        if name != "pictures":
            (tmp_path / name / "objects.inv").write_text("", encoding="utf-8")
    assert versions.write_list(tmp_path) == ["0.11.0.dev0", "0.10.0", "0.2.0"]
    script = (tmp_path / "versions.js").read_text(encoding="utf-8")
    listed = json.loads(script.removeprefix("window.DISTILLKIT_VERSIONS = ").rstrip(";\n"))
    assert listed["newest"] == "0.10.0"
    assert listed["versions"][0] == {"version": "0.11.0.dev0", "pages": ["api/x.html"]}
    assert 'url=0.10.0/index.html"' in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert versions.newest(["0.1.0.dev0"]) == "0.1.0.dev0"

"""Files that say one thing twice say the same: versions, Pythons, pins, targets, licences."""

from __future__ import annotations

import re
import runpy
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from tools.website import markdown

ROOT = Path(__file__).parents[1]
PROJECTS = [ROOT, *(file.parent for file in sorted(ROOT.glob("plugins/*/pyproject.toml")))]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PYTHON = "Programming Language :: Python :: "


def metadata(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read_yaml(file):
    return yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def pins():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE))


def make_targets():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda folder: folder.name)
def test_the_tested_pythons_are_those_of_the_classifiers(folder):
    listed = [one.removeprefix(PYTHON) for one in metadata(folder)["classifiers"] if PYTHON in one]
    versions = [one for one in listed if re.fullmatch(r"3\.\d+", one)]
    tested = read_yaml(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert versions == tested["python-version"]
    assert metadata(folder)["requires-python"] == f">={versions[0]}"


def test_the_dependency_jobs_use_the_lowest_and_the_newest_python():
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    pythons = jobs["test"]["strategy"]["matrix"]["python-version"]
    used = {
        one["versions"]: one["python-version"]
        for one in jobs["dependencies"]["strategy"]["matrix"]["include"]
    }
    assert used == {"lowest": pythons[0], "newest": pythons[-1]}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_is_pinned_reads_only_and_runs_targets_that_exist(file):
    workflow = read_yaml(file)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        # publishing proves its identity to the package index; nothing writes to the repository
        assert job.get("permissions", {}).keys() <= {"id-token"}
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", step["uses"])
    commands = " ".join(step.get("run", "") for step in steps(workflow))
    commands = commands.replace("${{ matrix.versions }}", "lowest")
    used = set(re.findall(r"\bmake ([\w-]+)", commands))
    assert used
    assert used <= make_targets()


def test_the_matrix_of_versions_begins_at_the_bounds_and_ends_at_the_pins():
    matrix = read_yaml(".github/workflows/ci.yml")["jobs"]["versions"]["strategy"]["matrix"]
    pythons = [one.removeprefix(PYTHON) for one in metadata(ROOT)["classifiers"] if PYTHON in one]
    assert (matrix["python-version"][0], matrix["python-version"][-1]) == ("3.11", pythons[-1])
    stated = [*metadata(ROOT)["dependencies"]]
    stated += metadata(ROOT / "plugins/distillkit-transformers")["dependencies"]
    bounds = dict(one.split(">=") for one in stated if ">=" in one)
    for name in ("torch", "transformers"):
        first, *_, last = matrix[name]
        assert (first + ".0").startswith(bounds[name] + ".")
        assert last == pins()[name]


def test_ci_runs_every_kind_of_check():
    commands = {step.get("run") for step in steps(read_yaml(".github/workflows/ci.yml"))}
    assert {f"make {target} PYTHON=python" for target in ("check", "test", "smoke")} <= commands


def test_documents_name_targets_that_exist():
    for file in ["README.md", "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]:
        text = (ROOT / file).read_text(encoding="utf-8")
        named = set(re.findall(r"`make ([\w-]+)`", text))
        assert named <= make_targets(), file


def test_hooks_use_the_pinned_versions():
    hooks = {repo["repo"]: repo for repo in read_yaml(".pre-commit-config.yaml")["repos"]}
    ruff = hooks["https://github.com/astral-sh/ruff-pre-commit"]
    assert ruff["rev"] == f"v{pins()['ruff']}"
    check = (ROOT / "Makefile").read_text(encoding="utf-8")
    for hook in hooks["local"]["hooks"]:
        command = hook["entry"].removeprefix(".venv/")
        assert f"$(VENV)/{command}\n" in check, "a hook is a part of `make check`"


def test_all_distributions_and_the_citation_have_one_version():
    versions = {metadata(folder)["name"]: metadata(folder)["version"] for folder in PROJECTS}
    assert len(set(versions.values())) == 1, versions
    citation = read_yaml("CITATION.cff")
    assert citation["version"] == versions["distillkit"]
    assert citation["license"] == metadata(ROOT)["license"]
    assert citation["repository-code"] == metadata(ROOT)["urls"]["Repository"]


def test_the_citation_has_what_its_schema_requires():
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    for one in [citation, *citation["references"]]:
        assert {"title", "authors"} <= one.keys()
    assert citation["message"]
    assert all(reference["type"] for reference in citation["references"])


@pytest.mark.parametrize(
    "file", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda file: file.stem
)
def test_an_issue_form_has_fields_with_names_of_their_own(file):
    form = read_yaml(file)
    assert form["name"]
    assert form["description"]
    fields = [one for one in form["body"] if one["type"] != "markdown"]
    names = [one["id"] for one in fields]
    assert len(names) == len(set(names)) > 0
    assert all(one["attributes"]["label"] for one in fields)


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda folder: folder.name)
def test_both_archives_hold_the_licence_and_what_is_no_code(folder, tmp_path):
    (wheel,) = WheelBuilder(str(folder)).build(directory=str(tmp_path), versions=["standard"])
    (sdist,) = SdistBuilder(str(folder)).build(directory=str(tmp_path), versions=["standard"])
    licence = (ROOT / "LICENSE").read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        held = archive.namelist()
        (found,) = [name for name in held if name.endswith(".dist-info/licenses/LICENSE")]
        assert archive.read(found) == licence
        (described,) = [name for name in held if name.endswith(".dist-info/METADATA")]
        assert b"License-Expression: Apache-2.0\n" in archive.read(described)
    package = folder / metadata(folder)["name"].replace("-", "_")
    files = [file for file in package.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert {str(file.relative_to(folder)) for file in files} <= set(held)
    with tarfile.open(sdist) as archive:
        (found,) = [name for name in archive.getnames() if re.fullmatch(r"[^/]+/LICENSE", name)]
        assert archive.extractfile(found).read() == licence


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda folder: folder.name)
def test_a_package_index_gets_links_and_pictures_that_lead_somewhere(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)  # the README is read from there, and installers build there
    (wheel,) = WheelBuilder(str(folder)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        (described,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        headers, _, text = archive.read(described).decode().partition("\n\n")
    assert "Description-Content-Type: text/markdown" in headers
    readme = (folder / "README.md").read_text(encoding="utf-8")
    before, after = markdown.links_of(readme), markdown.links_of(text)
    tag = f"v{metadata(folder)['version']}"
    repository = metadata(ROOT)["urls"]["Repository"]
    for old, new in zip(before, after, strict=True):
        if markdown.is_external(old) or old.startswith("#"):
            assert new == old
        else:
            file = (folder / old.partition("#")[0]).resolve().relative_to(ROOT)
            kind = "raw" if file.suffix == ".png" else "blob"
            anchor = old[len(old.partition("#")[0]) :]
            assert new == f"{repository}/{kind}/{tag}/{file}{anchor}"
    code = [[line for line, is_code in markdown.lines_of(one) if is_code] for one in (readme, text)]
    assert code[0] == code[1]


def test_the_lowest_versions_are_the_bounds_of_the_distributions():
    lowest = runpy.run_path(str(ROOT / "tools/lowest.py"))
    printed = lowest["lowest"](
        "torch==9.1\n# why\ntriton==7\nnumpy==8.2", ["torch>=2.1", "numpy", "rich>=3"]
    )
    assert printed.splitlines() == ["torch==2.1", "# why", "numpy==8.2", "rich==3"]
    bounds = lowest["lower_bounds"](lowest["_declared"]())
    assert {"torch", "pydantic", "pluggy", "transformers", "pytest"} <= bounds.keys()
    stated = [one for folder in PROJECTS for one in metadata(folder)["dependencies"]]
    for name, bound in bounds.items():
        if name in {"torch", "pydantic", "pluggy"}:
            assert f"{name}>={bound}" in stated


@pytest.mark.parametrize(
    ("requirements", "bounds"),
    [
        (["torch>=2.9", "torch >= 2.10"], {"torch": "2.10"}),
        (["Import_Linter>=2, <3; python_version >= '3.12'"], {"import-linter": "2"}),
        (["acme[more]>=1.0", "numpy", "rich; python_version < '3.12'"], {"acme": "1.0"}),
    ],
)
def test_of_several_bounds_the_highest_counts(requirements, bounds):
    lower_bounds = runpy.run_path(str(ROOT / "tools/lowest.py"))["lower_bounds"]
    assert lower_bounds(requirements) == bounds


@pytest.mark.parametrize("requirement", ["torch~=2.9", "torch==2.9", "torch<3", "a @ file:a"])
def test_a_requirement_without_a_lowest_version_is_an_error(requirement):
    lower_bounds = runpy.run_path(str(ROOT / "tools/lowest.py"))["lower_bounds"]
    with pytest.raises(
        ValueError, match=f"^'{requirement}' states no lowest version; write name>="
    ):
        lower_bounds([requirement])

"""What a name in a docstring or an annotation leads to.

Objects are documented under their public names; code and docstrings write them as they import them.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

_TORCH = "https://docs.pytorch.org/docs/stable/"
_PYTHON = "https://docs.python.org/3/library/"
ELSEWHERE = {
    "Tensor": f"{_TORCH}tensors.html#torch.Tensor",
    "torch.Tensor": f"{_TORCH}tensors.html#torch.Tensor",
    "nn.Module": f"{_TORCH}generated/torch.nn.Module.html",
    "torch.nn.modules.module.Module": f"{_TORCH}generated/torch.nn.Module.html",
    "torch.device": f"{_TORCH}tensor_attributes.html#torch.device",
    "Path": f"{_PYTHON}pathlib.html#pathlib.Path",
    "Mapping": f"{_PYTHON}collections.abc.html#collections.abc.Mapping",
    "Sequence": f"{_PYTHON}collections.abc.html#collections.abc.Sequence",
    "Iterable": f"{_PYTHON}collections.abc.html#collections.abc.Iterable",
    "Iterator": f"{_PYTHON}collections.abc.html#collections.abc.Iterator",
    "Callable": f"{_PYTHON}collections.abc.html#collections.abc.Callable",
    "Any": f"{_PYTHON}typing.html#typing.Any",
    "Literal": f"{_PYTHON}typing.html#typing.Literal",
}
# a short name is looked for in this order
MODULES = (
    "distillkit", "distillkit.losses", "distillkit.testing", "distillkit.errors", "distillkit.plot",
)  # fmt: skip


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Node | None:
    """A link for a name that Sphinx does not know as it is written; None warns.

    A name in an annotation that nothing documents stays text: it is private.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    found = _documented(env, node, target)
    if found is not None:
        page, anchor = found
        address = app.builder.get_relative_uri(node["refdoc"], page) + f"#{anchor}"
        return nodes.reference("", "", content, internal=True, refuri=address)
    if target in ELSEWHERE:
        return nodes.reference("", "", content, internal=False, refuri=ELSEWHERE[target])
    if target.startswith("collections.abc."):
        address = f"{_PYTHON}collections.abc.html#{target}"
        return nodes.reference("", "", content, internal=False, refuri=address)
    is_foreign = "." in target and not target.startswith("distillkit")
    return content if is_foreign or not isinstance(content, nodes.literal) else None


def _documented(env: BuildEnvironment, node: Any, target: str) -> tuple[str, str] | None:
    objects = env.get_domain("py").objects  # type: ignore[attr-defined]
    name = target.rpartition(".")[2] if target.startswith("distillkit.") else target
    here = node.get("py:module")
    for module in (here, *MODULES) if here else MODULES:
        entry = objects.get(f"{module}.{name}")
        if entry is not None:
            return entry.docname, entry.node_id
    return None

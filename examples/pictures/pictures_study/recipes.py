"""What a student learns from, method by method: distillkit's packaged recipes, or parts of them."""

from __future__ import annotations

from typing import Literal, get_args

import distillkit as dk

Method = Literal["alone", "soft labels", "DiDE", "pre-trained DiDE"]
METHODS: tuple[Method, ...] = get_args(Method)
PACKAGED = {"vqa": "dide", "ve": "dide_ve", "nlvr2": "dide_nlvr2", "retrieval": "dide_retrieval"}
PRETRAINING = "dide_retrieval"  # captions are candidates, too


def recipe_of(task: str, method: Method) -> dk.Recipe:
    """The recipe of a method on a task.

    Examples:
        >>> [term.loss for term in recipe_of("nlvr2", "soft labels").terms]
        ['kl_divergence']
    """
    packaged = dk.load_recipe(PACKAGED[task])
    if method == "alone":
        return dk.Recipe(name="alone", terms=[{"loss": "task"}])
    if method == "soft labels":
        soft = [term for term in packaged.terms if not str(term.on).startswith("attention.")]
        return packaged.model_copy(update={"name": f"soft labels of {task}", "terms": tuple(soft)})
    return packaged

"""The models are found by their class, and both recipes teach the dual encoder something."""

import pytest
import torch
from acme_distill.models import DualEncoder, FusionEncoder, sample_batch

import distillkit as dk


@pytest.mark.parametrize("recipe", ["dide", "acme"])
def test_the_student_comes_closer_to_its_teacher(recipe):
    torch.manual_seed(0)
    student, teacher = DualEncoder(), FusionEncoder()
    distiller = dk.Distiller(student, teacher, recipe)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    sizes = [(8, 12), (16, 4), (12, 12)]
    batches = [sample_batch(height=h, width=w, seed=i) for i, (h, w) in enumerate(sizes)]

    def parts():
        distiller.eval()
        with torch.no_grad():
            found = [distiller(batch).parts for batch in batches]
        distiller.train()
        return {name: sum(part[name].item() for part in found) for name in found[0]}

    before = parts()
    for step in range(60):
        distiller(batches[step % 3]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = parts()
    assert len(after) == 3
    assert all(after[name] < 0.7 * before[name] for name in before), (before, after)

"""Knowledge distillation: the loss by hand, a teacher that never moves, and training that starts from its run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from longrec.models.core.registry import build
from longrec.models.distillation import Distillation
from longrec.testing.batches import FEW, ragged
from longrec.training.warm_start import inherit

TEACHER: dict[str, Any] = {"name": "din", "mlp": [32, 8], "attention": [16], "dropout": 0.3}


def distillation(settings: dict[str, Any]) -> Distillation:
    torch.manual_seed(0)
    student = {"name": "din", "mlp": [8], "attention": [4]}
    model = build({"name": "distillation", "student": student, "teacher": TEACHER, **settings}, FEW)
    assert isinstance(model, Distillation)
    return model


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_by_hand(alpha: float) -> None:
    model, batch = distillation({"alpha": alpha, "temperature": 3.0}), ragged(20, fields=FEW)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    student, teacher = model(batch), model.teacher(batch).detach()
    soft = F.binary_cross_entropy_with_logits(student / 3, torch.sigmoid(teacher / 3))
    entropy = F.binary_cross_entropy_with_logits(teacher / 3, torch.sigmoid(teacher / 3))
    label = F.binary_cross_entropy_with_logits(student, batch.label)  # type: ignore[arg-type]
    torch.testing.assert_close(model.loss(batch), (1 - alpha) * label + alpha * 9 * (soft - entropy))


def test_the_teacher_is_never_trained() -> None:
    model, batch = distillation({}).train(), ragged(20, fields=FEW)
    assert not model.teacher.training
    before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    model.loss(batch).backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.teacher.state_dict().items())
    frozen = {id(parameter) for parameter in model.teacher.parameters()}
    assert not frozen & {id(table) for table in model.embedding_parameters()}


def test_the_teacher_has_the_weights_of_its_run() -> None:
    model, teacher = distillation({}), build(TEACHER, FEW)
    own = {name: tensor.clone() for name, tensor in model.base.state_dict().items()}
    inherit(model, teacher, "fit.init_from: runs/teacher")
    assert all(torch.equal(tensor, teacher.state_dict()[name]) for name, tensor in model.teacher.state_dict().items())
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.base.state_dict().items())

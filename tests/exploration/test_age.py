"""AGE: the seven mistakes of a third-party version, and the properties of its equations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.exploration.age import Age
from longrec.exploration.directions import find_fgm_direction, find_pgd_direction, normalize
from longrec.exploration.explorer import MASKS, Scores, evaluate
from longrec.exploration.gate import Gate, fit_gate, read_item
from longrec.exploration.masks import Masks
from longrec.exploration.noise import draw_noise
from longrec.exploration.settings import AgeSettings
from longrec.features.batch import Batch
from longrec.features.fields import Field, Fields
from longrec.models.core.kinds import Ranker
from longrec.models.core.registry import build
from longrec.testing.batches import FEW, grouped, ragged, shared, take

Build = Callable[[str], Ranker]
STRONG: dict[str, Any] = {"dropout": 0.3, "strength": 1.0, "draws": 5, "gate": False}


def age(model: Ranker, **settings: Any) -> Age:
    return Age(model, AgeSettings(**{**STRONG, **settings}))


def batch_of(rows: int = 40, seed: int = 0) -> Batch:
    return ragged(rows, seed, fields=FEW)


def perturbation(explorer: Age, batch: Batch, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return the uncertainty ``[C]`` and the perturbation ``[C, D]`` of a batch of requests with one candidate."""
    noise = draw_noise(explorer.noise, seed, batch.size, batch.layout.requests)
    tensors = {name: torch.from_numpy(array) for name, array in noise.items()}
    with torch.no_grad(), evaluate(explorer):
        clicks = explorer.read(batch, explorer.settings.scope)
        y = torch.sigmoid(clicks.logit(clicks.vectors))
        return explorer.measure_uncertainty(clicks, y, tensors), explorer.perturb(clicks, y, tensors)


@pytest.mark.parametrize("name", ["pooling", "bst", "mmoe", "lr"])
def test_a_masks_are_active_in_evaluation_mode(ranker: Build, name: str) -> None:
    model = ranker(name).eval()
    uncertain, _ = perturbation(age(model, uncertainty="ucb"), batch_of())
    assert (uncertain > 0).all()
    for uncertainty in ("ucb", "thompson"):
        certain, step = perturbation(age(model, uncertainty=uncertainty, dropout=0.0), batch_of())
        assert (certain == 0).all()
        assert (step == 0).all()


def test_b_masks_drop_hidden_units_and_no_embeddings(ranker: Build) -> None:
    model, batch = ranker("pooling"), batch_of(5)
    clicks = age(model).read(batch)
    masks, seen = Masks(model), list[tuple[Tensor, Tensor]]()
    assert masks.widths == [12, 8]
    layers = list(model.get_submodule("top.layers"))
    handles = [layer.register_forward_hook(lambda _, x, out: seen.append((x[0], out))) for layer in layers]
    with torch.no_grad():
        clicks.logit(clicks.vectors)
        clicks.masked(torch.cat([torch.full((1, 1, 12), 2.0), torch.zeros(1, 1, 8)], 2))
    for handle in handles:
        handle.remove()
    plain, masked = seen[:2], seen[2:]
    assert torch.equal(masked[0][0], plain[0][0])  # what was read, embeddings among it
    torch.testing.assert_close(masked[1][0], 2 * plain[1][0])  # the first layer, after its mask
    zero = clicks.masked(torch.zeros(1, 1, 20))[0]
    torch.testing.assert_close(zero, torch.sigmoid(model.output_biases()[0]).expand(5).detach())


def test_c_directions_follow_the_logit(ranker: Build) -> None:
    model, batch = ranker("pooling"), batch_of()
    explorer = age(model)
    clicks = explorer.read(batch)
    own = torch.stack([_gradient_of_row(clicks, row) for row in range(batch.size)])
    torch.testing.assert_close(find_fgm_direction(clicks.gradient, clicks.vectors), normalize(own))
    near = find_pgd_direction(clicks.gradient, clicks.vectors, torch.full((batch.size,), 1e-4), 5)
    torch.testing.assert_close(near, normalize(own), atol=1e-2, rtol=0)
    assert (near.std(0) > 1e-3).all()  # not one direction for all candidates


def _gradient_of_row(clicks: Any, row: int) -> Tensor:
    v = clicks.vectors.detach().requires_grad_()
    (g,) = torch.autograd.grad(clicks.logit(v)[row], v)
    others = [other for other in range(len(v)) if other != row]
    assert (g[others] == 0).all()
    return g[row]


@pytest.mark.parametrize("direction", ["fgm", "pgd"])
def test_d_thompson_sampling_keeps_the_sign(ranker: Build, direction: str) -> None:
    explorer, batch = age(ranker("pooling"), uncertainty="thompson", strength=0.01, direction=direction), batch_of()
    away, _ = perturbation(explorer, batch)
    scores = explorer.score(batch, 1)
    assert (away > 0).any()
    assert (away < 0).any()
    assert torch.equal((scores.score - scores.probability).sign(), away.sign())


def test_e_gradients_are_those_of_each_candidate_alone(ranker: Build) -> None:
    model, batch = copy.deepcopy(ranker("din")).train(), batch_of(8)  # with batch normalization
    explorer = age(model, masks="candidate", uncertainty="ucb")
    noise = {name: torch.from_numpy(x) for name, x in draw_noise(explorer.noise, 3, 8).items()}
    together = explorer(batch, noise)
    for row in range(8):
        alone = explorer(take(batch, [row]), {MASKS: noise[MASKS][row : row + 1]})
        torch.testing.assert_close(alone.score, together.score[row : row + 1], atol=1e-6, rtol=1e-4)


def test_f_the_gate_multiplies_the_perturbation_and_not_the_scores(ranker: Build) -> None:
    explorer, batch = age(ranker("pooling"), uncertainty="ucb", strength=20.0), batch_of()
    whole, (_, step) = explorer.score(batch, 1), perturbation(explorer, batch)
    explorer.gate = nn.Identity()  # type: ignore[assignment]
    explorer.open_gate = lambda _clicks, y_C: torch.full_like(y_C, 0.5)  # type: ignore[method-assign]
    half, (_, smaller) = explorer.score(batch, 1), perturbation(explorer, batch)
    assert (smaller.norm(dim=1) - step.norm(dim=1) / 2).abs().max() < 1e-5
    mixed = (whole.probability + whole.score) / 2
    assert (half.score - mixed).abs().max() > 1e-3


def test_g_the_gate_compares_one_number_per_candidate(ranker: Build) -> None:
    model, batch = ranker("pooling"), batch_of(6)
    gate = Gate(read_item(model, batch).shape[1])
    explorer = Age(model, AgeSettings(**{**STRONG, "gate": True}), gate)
    clicks = explorer.read(batch)
    y = torch.sigmoid(clicks.logit(clicks.vectors)).detach()
    average = torch.sigmoid(gate(read_item(model, batch)))
    assert average.shape == y.shape
    with torch.no_grad():
        bias = gate.network.output_bias
        bias += torch.logit(y.median()) - gate(read_item(model, batch)).median()
    is_open = explorer.open_gate(clicks, y)
    assert torch.equal(is_open, (y > torch.sigmoid(gate(read_item(model, batch)))).float())
    assert 0 < is_open.sum() < 6
    _, step = perturbation(explorer, batch)
    assert torch.equal((step != 0).any(1), is_open.bool())


@pytest.mark.parametrize("layout", [batch_of(9), shared(5, 7, fields=FEW), grouped([0, 0, 1, 2], fields=FEW)],
                         ids=["single", "shared", "grouped"])  # fmt: skip
@pytest.mark.parametrize("name", ["din", "dien", "bst"])
def test_1_without_strength_or_with_closed_gates_the_score_is_the_probability(
    ranker: Build, name: str, layout: Batch
) -> None:
    model = ranker(name)
    gate = Gate(read_item(model, layout).shape[1])
    with torch.no_grad():
        gate.network.output_bias.fill_(1e3)
    closed = Age(model, AgeSettings(**{**STRONG, "gate": True}), gate).score(layout, 2)
    none = age(model, strength=0.0).score(layout, 2)
    assert torch.equal(closed.score, closed.probability)
    assert torch.equal(none.score, none.probability)
    moved = age(model).score(layout, 2)
    assert not torch.equal(moved.score, moved.probability)
    with torch.no_grad():
        plain = torch.sigmoid(model(layout if model.reads_groups else layout.ungroup()))
    assert torch.equal(plain, closed.probability)


def test_2_an_upper_bound_lowers_no_score(ranker: Build) -> None:
    scores = age(ranker("pooling"), uncertainty="ucb", strength=0.01).score(batch_of(), 4)
    assert (scores.score >= scores.probability - 1e-6).all()
    assert (scores.score > scores.probability).any()


@pytest.mark.parametrize("uncertainty", ["ucb", "thompson"])
@pytest.mark.parametrize("statistic", ["std", "var"])
def test_3_to_first_order_the_score_moves_by_uncertainty_times_sensitivity(
    ranker: Build, uncertainty: str, statistic: str
) -> None:
    model, batch = copy.deepcopy(ranker("pooling")).double(), batch_of()
    explorer = age(model, uncertainty=uncertainty, statistic=statistic, strength=1e-4, direction="fgm")
    away, _ = perturbation(explorer, batch)
    scores, clicks = explorer.score(batch, 1), explorer.read(batch)
    y = scores.probability
    slope = (y * (1 - y)) * clicks.gradient(clicks.vectors).norm(dim=1)
    torch.testing.assert_close(scores.score - y, 1e-4 * away * slope, rtol=2e-2, atol=1e-12)


def test_4_the_perturbation_is_as_long_as_strength_times_uncertainty(ranker: Build) -> None:
    for uncertainty in ("ucb", "thompson"):
        for direction in ("fgm", "pgd"):
            explorer = age(ranker("pooling"), uncertainty=uncertainty, direction=direction, strength=2.0)
            away, step = perturbation(explorer, batch_of())
            torch.testing.assert_close(step.norm(dim=1), 2.0 * away.abs(), rtol=1e-5, atol=1e-8)


def test_5_projected_steps_reach_higher_than_one_step(ranker: Build) -> None:
    batch, radius = batch_of(200), torch.full((200,), 1.5)
    clicks = age(ranker("pooling")).read(batch)
    with torch.no_grad():
        one = clicks.logit(clicks.vectors + 1.5 * find_fgm_direction(clicks.gradient, clicks.vectors))
        several = clicks.logit(clicks.vectors + 1.5 * find_pgd_direction(clicks.gradient, clicks.vectors, radius, 10))
    assert several.mean() > one.mean()


@pytest.mark.parametrize("training", [True, False])
def test_6_nothing_of_the_model_changes(ranker: Build, training: bool) -> None:
    model = copy.deepcopy(ranker("din")).train(training)
    model.get_submodule("top").eval()  # a mode of its own
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    age(model).score(batch_of(), 1)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_7_other_rows_do_not_matter(ranker: Build) -> None:
    explorer, batch = age(ranker("din"), uncertainty="ucb"), batch_of(9)
    order = [4, *torch.randperm(9, generator=torch.Generator().manual_seed(5)).tolist()]
    order = [4, *(row for row in order[1:] if row != 4)]
    noise = {name: torch.from_numpy(x) for name, x in draw_noise(explorer.noise, 3, 9, 9).items()}
    first = explorer(batch, noise).score[4]
    moved = explorer(take(batch, order), {name: x[order] for name, x in noise.items()}).score[0]
    torch.testing.assert_close(first, moved, atol=1e-6, rtol=1e-5)


def test_8_thompson_sampling_is_centered_and_its_seed_repeats_it(ranker: Build) -> None:
    explorer, batch = age(ranker("pooling"), dropout=0.05, direction="fgm"), shared(6, 5, fields=FEW)
    drawn = torch.stack([perturbation(explorer, batch, seed)[0] for seed in range(120)])
    assert (drawn.mean(0).abs() < 0.25 * drawn.std(0)).all()
    assert (drawn > 0).any(0).all()
    assert (drawn < 0).any(0).all()
    assert torch.equal(explorer.score(batch, 7).score, explorer.score(batch, 7).score)
    assert not torch.equal(explorer.score(batch, 7).score, explorer.score(batch, 9).score)


def test_9_the_loss_of_the_gate_reaches_no_table(ranker: Build) -> None:
    model, batch = copy.deepcopy(ranker("din")), batch_of()
    gate = Gate(read_item(model, batch).shape[1])
    gate.loss(model, batch).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in gate.parameters())
    with torch.enable_grad():
        h = model.embed(batch).candidate["item"].repeat(1, 2)[:, : gate.network.layers[0].linear.in_features]
        assert h.requires_grad
        gate(h).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_10_the_gate_estimates_the_click_rate_of_items() -> None:
    item = Field("item", "id", 12, side="item")
    model = build({"name": "fm", "embedding_dim": 4, "init_std": 1.0}, Fields((item,), {}))
    assert isinstance(model, Ranker)
    generator, rates = torch.Generator().manual_seed(0), torch.linspace(0.05, 0.9, 12)

    def draw() -> Batch:
        ids = torch.randint(2, 12, (256,), generator=generator, dtype=torch.int32)
        label = (torch.rand(256, generator=generator) < rates[ids.long()]).float()
        return Batch.single(256, {"item": ids}, label=label)

    gate = fit_gate(model, (draw() for _ in range(100)), lr=0.02, hidden=16)
    every = torch.arange(2, 12, dtype=torch.int32)
    with torch.no_grad():
        estimated = torch.sigmoid(gate(read_item(model, Batch.single(10, {"item": every}))))
    assert (estimated - rates[2:]).abs().mean() < 0.06


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_12_it_works_where_callers_take_no_gradients(ranker: Build, mode: Callable[[], Any]) -> None:
    explorer, batch = age(ranker("din")), batch_of(9)
    expected = explorer.score(batch, 1)
    with mode():
        actual = explorer.score(batch, 1)
        assert torch.equal(actual.score, expected.score)
    assert not actual.score.requires_grad


def test_a_gradient_of_zero_gives_the_direction_zero(ranker: Build) -> None:
    model = copy.deepcopy(ranker("pooling"))
    with torch.no_grad():
        for name in ("top.layers.0.linear.weight", "top.layers.0.linear.bias"):
            model.get_parameter(name).zero_()
    scores: list[Scores] = [age(model, direction=one, uncertainty="ucb").score(batch_of(), 1) for one in ("fgm", "pgd")]
    for one in scores:
        assert one.score.isfinite().all()
        assert torch.equal(one.score, one.probability)
    assert normalize(torch.tensor([[0.0, 0.0], [3e-30, 4e-30]])).tolist() == [[0, 0], [pytest.approx(0.6), pytest.approx(0.8)]]  # fmt: skip  # noqa: E501


def test_of_several_tasks_only_the_explored_one_is_read(ranker: Build) -> None:
    model, batch = ranker("mmoe"), batch_of()
    with torch.no_grad():
        p = torch.sigmoid(model.logits(batch))
    torch.testing.assert_close(age(model).score(batch, 1).probability, p[:, 0])
    torch.testing.assert_close(age(model, task="bought").score(batch, 1).probability, p[:, 1])
    assert (p[:, 0] - p[:, 1]).abs().min() > 1e-3
    with pytest.raises(ConfigError, match="learns no 'kept'; tasks: label, bought"):
        age(model, task="kept")


def test_the_scope_perturbs_the_item_or_all_features_of_ids(ranker: Build) -> None:
    batch = shared(5, 7, fields=FEW)
    item, every = age(ranker("din")).read(batch).vectors, age(ranker("din")).read(batch, "all").vectors
    assert item.shape == (5, 4)
    assert every.shape == (5, 8)  # user and item, and neither the price nor the vector of the user
    one, other = age(ranker("din")).score(batch, 1), age(ranker("din"), scope="all").score(batch, 1)
    assert torch.equal(one.probability, other.probability)
    assert not torch.equal(one.score, other.score)


def test_a_gate_is_required_where_the_settings_want_one(ranker: Build) -> None:
    with pytest.raises(ConfigError, match="gate: none is fitted"):
        Age(ranker("din"), AgeSettings())
    fields = Fields((Field("price", "numeric", 0, side="item"),), {})
    model = build({"name": "deepfm"}, fields)
    assert isinstance(model, Ranker)
    with pytest.raises(ConfigError, match="no id feature has side: item"):
        age(model)

"""All tokenizers: hidden codes, saved ones, capacities, and what each method adds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from longrec.data.synthetic import generate_dataset
from longrec.errors import ConfigError, DataError, UnknownName
from longrec.semantic_ids.autoencoder import Autoencoder
from longrec.semantic_ids.capacity import Capacity
from longrec.semantic_ids.churn import measure_churn
from longrec.semantic_ids.drq import DRQ, compute_contrast
from longrec.semantic_ids.methods import build_tokenizer
from longrec.semantic_ids.residual import ResidualCodebooks, fit_residual_kmeans
from longrec.semantic_ids.stored import SemanticIds
from longrec.semantic_ids.tokenizer import Tokenizer


def draw_tree(
    items: int = 1_200, levels: int = 3, size: int = 6, width: int = 24, noise: float = 0.01, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return vectors ``[N, X]`` and their hidden codes ``[N, L]``: sums of one codeword per level, and a little noise.

    Codewords shrink from level to level, so that residual quantization can find them one level after the other.
    """
    random = torch.Generator().manual_seed(seed)
    code_NL = torch.randint(size, (items, levels), generator=random)
    x_NX = noise * torch.randn(items, width, generator=random)
    for level in range(levels):
        book_KX = torch.linalg.qr(torch.randn(width, width, generator=random))[0][:size] * 0.3**level
        x_NX += book_KX[code_NL[:, level]]
    return x_NX, code_NL


SMALL: Mapping[str, Any] = {"levels": 3, "size": 6}
NET: Mapping[str, Any] = {**SMALL, "width": 12, "hidden": (32,), "epochs": 25, "batch_size": 256, "lr": 3e-3}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "rq_kmeans": {"name": "rq_kmeans", **SMALL},
    "rq_vae": {"name": "rq_vae", **NET},
    "rqp_vae": {"name": "rq_vae", **NET, "ema": True, "revive": True},
    "drq": {"name": "drq", **NET},
    "drq_contrast": {"name": "drq", **NET, "contrast": 0.3, "pair_batch": 64},
    "drq_whiten": {"name": "drq", **NET, "whiten": True},
}
X_NX, HIDDEN_NL = draw_tree()
PAIRS = torch.stack([torch.arange(0, 600), torch.arange(600, 1_200)], 1)


def fit(method: Mapping[str, Any], x_NX: Tensor = X_NX, **arguments: Any) -> tuple[Tokenizer, Tensor]:
    tokenizer = build_tokenizer(method)
    return tokenizer, tokenizer.fit(x_NX, pairs=PAIRS, **arguments).codes


@pytest.fixture(scope="module", params=METHODS, ids=str)
def fitted(request: pytest.FixtureRequest) -> tuple[str, Tokenizer, Tensor]:
    """Every method, fitted once."""
    return request.param, *fit(METHODS[request.param])


def test_tokenizers_recover_the_hidden_tree(fitted: tuple[str, Tokenizer, Tensor]) -> None:
    """Up to renaming: exactly by k-means on the vectors, and the first level by an encoder that keeps the distances.

    Encoders with a contrastive term or whitening change the distances, so theirs are other codes.
    """
    name, _, codes = fitted
    churn = measure_churn(HIDDEN_NL.int().numpy(), codes.numpy(), 6)
    if name == "rq_kmeans":
        assert churn.prefixes == (0, 0, 0)
        assert min(churn.unaligned) > 0.5
    elif name in ("drq", "rq_vae", "rqp_vae"):
        assert churn.prefixes[0] < 0.02


def test_hidden_catalog_is_recovered_up_to_renaming() -> None:
    """Group and second code of the items of the synthetic dataset, from their vectors alone."""
    items = generate_dataset("hidden_catalog", users=1, each=20).items
    assert items is not None
    x_NX = torch.from_numpy(np.stack(items["vector"].to_pylist()).astype(np.float32))
    hidden_NL = np.stack([items["group"].to_numpy(), items["code"].to_numpy()], 1).astype(np.int32)
    codes = build_tokenizer({"name": "rq_kmeans", "levels": 2, "size": 16}).fit(x_NX).codes
    assert measure_churn(hidden_NL, codes.numpy(), 16).prefixes == (0, 0)
    shuffled = x_NX[torch.randperm(len(x_NX), generator=torch.Generator().manual_seed(0))]
    codes = build_tokenizer({"name": "rq_kmeans", "levels": 2, "size": 16}).fit(shuffled).codes
    assert measure_churn(hidden_NL, codes.numpy(), 16).prefixes[0] > 0.7


def test_codes_of_the_fit_are_those_of_new_items(fitted: tuple[str, Tokenizer, Tensor]) -> None:
    _, tokenizer, codes = fitted
    assert codes.dtype == torch.int32
    assert torch.equal(tokenizer.codes(X_NX), codes)
    assert tokenizer.codebooks.shape == (3, 6, tokenizer.latent(X_NX[:2]).shape[1])
    assert tokenizer.width == 24


def test_codes_decode_to_vectors_near_the_items(fitted: tuple[str, Tokenizer, Tensor]) -> None:
    """Each level adds something, and what an encoder and a decoder lose without codes is less."""
    _, tokenizer, codes = fitted
    distance = [float((tokenizer.decode(codes[:, :count]) - X_NX).square().sum(1).mean()) for count in (1, 2, 3)]
    assert distance[2] < distance[1] < distance[0] < float(X_NX.var(0).sum())
    assert float((tokenizer.reconstruct(X_NX) - X_NX).square().sum(1).mean()) <= distance[2]


def test_drq_9_saved_tokenizers_give_the_same_codes(fitted: tuple[str, Tokenizer, Tensor], tmp_path: Path) -> None:
    """DRQ 9: the same codes after save and load, of the items and of new ones."""
    _, tokenizer, codes = fitted
    new_MX = draw_tree(50, seed=9)[0]
    ids = SemanticIds.build(pa.array(range(len(codes))), codes.numpy(), tokenizer, {}, "item")
    opened = SemanticIds.open(ids.write(tmp_path / "ids"))
    assert opened.codes.tolist() == codes.tolist()
    assert opened.tokenizer.settings == tokenizer.settings
    assert torch.equal(opened.tokenizer.codes(X_NX), codes)
    assert torch.equal(opened.tokenizer.codes(new_MX), tokenizer.codes(new_MX))
    assert torch.equal(opened.tokenizer.decode(codes), tokenizer.decode(codes))


def test_drq_9_the_same_seed_gives_the_same_codes(fitted: tuple[str, Tokenizer, Tensor]) -> None:
    name, _, codes = fitted
    short = {**METHODS[name], **({"epochs": 2} if name != "rq_kmeans" else {})}
    state = torch.get_rng_state()
    first, second, other = (fit(short, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[0].codebooks, second[0].codebooks)
    assert not torch.equal(first[0].codebooks, other[0].codebooks)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["rq_kmeans", "rqp_vae", "drq"])
def test_every_tokenizer_keeps_within_a_capacity(name: str) -> None:
    weights = torch.rand(len(X_NX), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 9 + 1
    method = {**METHODS[name], **({"epochs": 3} if name != "rq_kmeans" else {})}
    tokenizer = build_tokenizer(method)
    result = tokenizer.fit(X_NX, weights=weights, capacity=Capacity(tau=1.1))
    limit = 1.1 * float(weights.sum()) / 6
    for level, facts in enumerate(result.levels):
        loads = torch.bincount(result.codes[:, level].long(), weights, minlength=6)
        assert float(loads.max()) <= limit * (1 + 1e-9)
        assert facts.capacity is not None
        assert facts.capacity.violations == ()
    assert not torch.equal(result.codes, tokenizer.codes(X_NX))


def test_drq_8_stage_2_leaves_the_encoder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """DRQ 8: the encoder is that of stage 1, energy falls level by level, and z = z^ + r^(L+1)."""
    stages: list[dict[str, Tensor]] = []

    def record(z_ND: Tensor, *arguments: Any, **options: Any) -> Any:
        stages.append({key: value.clone() for key, value in tokenizer.autoencoder.state_dict().items()})
        return fit_residual_kmeans(z_ND, *arguments, **options)

    tokenizer = build_tokenizer({**METHODS["drq"], "epochs": 3})
    assert isinstance(tokenizer, DRQ)
    monkeypatch.setattr("longrec.semantic_ids.drq.fit_residual_kmeans", record)
    result = tokenizer.fit(X_NX)
    after = tokenizer.autoencoder.state_dict()
    assert len(stages) == 1
    assert all(torch.equal(after[key], value) for key, value in stages[0].items())
    energies = [result.levels[0].energy, *(level.inertia for level in result.levels)]
    assert energies == sorted(energies, reverse=True)
    assert energies[-1] < 0.2 * energies[0]
    z_ND = tokenizer.latent(X_NX)
    rest_ND = z_ND.clone()
    for level, book in enumerate(tokenizer.codebooks):
        rest_ND = rest_ND - book[result.codes[:, level].long()]
    torch.testing.assert_close(tokenizer.residual.decode(result.codes) + rest_ND, z_ND, rtol=0, atol=1e-6)
    assert float(rest_ND.double().square().sum()) == pytest.approx(energies[-1], rel=1e-5)


def test_drq_10_lambda_0_is_the_plain_autoencoder_bit_for_bit() -> None:
    """DRQ 10."""
    plain = fit({**METHODS["drq"], "epochs": 2}, seed=5)[0]
    zero = build_tokenizer({**METHODS["drq"], "epochs": 2, "contrast": 0.0})
    zero.fit(X_NX, seed=5)
    some = fit({**METHODS["drq"], "epochs": 2, "contrast": 0.3, "pair_batch": 64}, seed=5)[0]
    for key, value in plain.tensors().items():
        assert torch.equal(value, zero.tensors()[key]), key
    assert not torch.equal(plain.codebooks, some.codebooks)


def test_drq_10_items_that_occur_twice_are_no_negatives() -> None:
    """DRQ 10, by hand: pair 0 is (1, 2); item 2 of pair 1 and item 1 of pair 2 are left out of its negatives."""
    pair_P2 = torch.tensor([[1, 2], [3, 2], [4, 1], [5, 6]])
    random = torch.Generator().manual_seed(0)
    z_PD, positive_PD = torch.randn(4, 3, generator=random), torch.randn(4, 3, generator=random)
    score_PP = F.cosine_similarity(z_PD.unsqueeze(1), positive_PD.unsqueeze(0), dim=2) / 0.1
    negatives = {0: [3], 1: [2, 3], 2: [0, 1, 3], 3: [0, 1, 2]}
    by_hand = [
        torch.logsumexp(score_PP[row, [row, *others]], 0) - score_PP[row, row] for row, others in negatives.items()
    ]
    torch.testing.assert_close(compute_contrast(z_PD, positive_PD, pair_P2, 0.1), torch.stack(by_hand).mean())


def test_a_contrastive_term_brings_pairs_together() -> None:
    def measure(tokenizer: Tokenizer) -> float:
        z_ND = tokenizer.latent(X_NX)
        return float(F.cosine_similarity(z_ND[PAIRS[:, 0]], z_ND[PAIRS[:, 1]]).mean())

    assert measure(fit(METHODS["drq_contrast"])[0]) > measure(fit(METHODS["drq"])[0]) + 0.2


def test_a_contrastive_term_needs_pairs() -> None:
    with pytest.raises(DataError, match="contrast 0.3 without pairs"):
        build_tokenizer(METHODS["drq_contrast"]).fit(X_NX)


def test_whitened_latent_vectors_have_unit_covariance(fitted: tuple[str, Tokenizer, Tensor]) -> None:
    name, tokenizer, _ = fitted
    covariance_DD = torch.cov(tokenizer.latent(X_NX).t().double(), correction=0)
    is_white = torch.allclose(covariance_DD, torch.eye(len(covariance_DD), dtype=torch.float64), atol=1e-3)
    assert is_white == (name == "drq_whiten")


def test_rq_vae_quantizes_as_residual_codebooks_do() -> None:
    """Codes by hand: the nearest codeword of each level, of what the levels before left over."""
    tokenizer, codes = fit({**METHODS["rq_vae"], "epochs": 2})
    rest_ND = tokenizer.latent(X_NX)
    for level, book in enumerate(tokenizer.codebooks):
        own = torch.cdist(rest_ND, book).argmin(1)
        assert torch.equal(own.int(), codes[:, level])
        rest_ND = rest_ND - book[own]


@pytest.mark.parametrize("ema", [True, False])
def test_revived_codes_are_used_and_others_stay_dead(ema: bool) -> None:
    """Vectors in two groups leave most of 32 codes dead, unless they are revived."""
    random = torch.Generator().manual_seed(0)
    x_NX = torch.cat([torch.zeros(300, 4), torch.ones(300, 4) * 5]) + 0.5 * torch.randn(600, 4, generator=random)
    base = {"name": "rq_vae", "levels": 1, "size": 32, "width": 4, "hidden": (8,), "epochs": 20, "batch_size": 100}
    active = {
        revive: len(fit({**base, "lr": 1e-2, "ema": ema, "decay": 0.8, "revive": revive}, x_NX)[1].unique())
        for revive in (False, True)
    }
    assert active[True] >= 30
    assert active[True] > active[False]


def test_a_scaled_autoencoder_does_not_depend_on_the_scale() -> None:
    settings = DRQ.Settings(**NET)
    codes = []
    for scale in (1.0, 1e4):
        tokenizer = build_tokenizer({**METHODS["drq"], "epochs": 2})
        codes.append(tokenizer.fit(X_NX * scale + scale, seed=1).codes)
    churn = measure_churn(codes[0].numpy(), codes[1].numpy(), 6)
    assert churn.prefixes[0] < 0.01
    assert isinstance(Autoencoder(24, settings), Autoencoder)


def test_codebooks_decode_prefixes_of_codes() -> None:
    books = ResidualCodebooks(torch.tensor([[[1.0], [2.0]], [[0.25], [0.5]]]))
    assert books.encode(torch.tensor([[2.4], [1.3]])).tolist() == [[1, 1], [0, 0]]
    assert books.decode(torch.tensor([[1, 1], [0, 0]])).flatten().tolist() == [2.5, 1.25]
    assert books.decode(torch.tensor([[1], [0]])).flatten().tolist() == [2.0, 1.0]


def test_unknown_methods_and_settings_are_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'rq_kmeans'"):
        build_tokenizer("rq_kmean")
    with pytest.raises(ConfigError, match="method.siz"):
        build_tokenizer({"name": "drq", "siz": 3})
    with pytest.raises(ConfigError, match="method.name: missing"):
        build_tokenizer({"size": 3})


@pytest.mark.parametrize("name", ["rq_kmeans", "rq_vae", "drq"])
def test_fewer_items_than_codes_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="5 vectors for 6 codes"):
        build_tokenizer(METHODS[name]).fit(X_NX[:5])

"""Runner of FuxiCTR's feature processor, loader, layers and ``fit``, with a DIN of its layers (its wheel has none).

Fixed differences: gradients are clipped at norm 10. The vocabulary is learned, so its item table holds the items that
occur, not the whole catalog. Loading runs in ray's processes, whose time and memory do not count here.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This file has the name of the package, so its folder must not be on the path.
sys.path[0] = str(Path(__file__).resolve().parents[1])
import clock  # noqa: E402

WIDTH = 16


def write_text_rows(source: Path, target: Path) -> None:
    """Write the form of the feature processor: ids as text, histories joined by ^."""
    import polars as pl

    rows = pl.read_parquet(source)
    ids = [pl.col(name).cast(pl.String) for name in ("user_id", "hour", "item_id", "cate_id")]
    lists = [pl.col(name).cast(pl.List(pl.String)).list.join("^") for name in ("hist_item", "hist_cate")]
    rows.with_columns(ids + lists).drop("part").write_parquet(target)


def build_settings(options) -> dict:
    """Return one dictionary of settings, as in its YAML files."""
    category = [
        {"name": name, "active": True, "dtype": "str", "type": "categorical"}
        for name in ("user_id", "hour", "item_id", "cate_id")
    ]
    sequences = [
        {"name": name, "active": True, "dtype": "str", "type": "sequence", "splitter": "^", "padding": "pre",
         "max_len": options.meta["cap"], "share_embedding": twin, "feature_encoder": None}
        for name, twin in (("hist_item", "item_id"), ("hist_cate", "cate_id"))
    ]  # fmt: skip
    folder = options.work / "log"
    return {
        "dataset_id": "log", "data_root": str(options.work), "model_root": str(options.work), "data_format": "parquet",
        "train_data": str(folder / "train.parquet"), "valid_data": str(folder / "valid.parquet"),
        "test_data": str(folder / "test.parquet"), "feature_cols": category + sequences,
        "label_col": {"name": "label", "dtype": "float"}, "min_categr_count": 1, "verbose": 0, "metrics": ["AUC"],
        "optimizer": "adam", "loss": "binary_crossentropy", "task": "binary_classification",
        "batch_size": options.batch, "num_workers": 1, "shuffle": True,
    }  # fmt: skip


def prepare(options) -> None:
    """Fit the vocabularies and write encoded Parquet, once."""
    from fuxictr.preprocess import FeatureProcessor, build_dataset

    for split in ("train", "test"):
        write_text_rows(options.data / f"{split}.parquet", options.work / f"{split}.parquet")
    config = build_settings(options)
    test = str(options.work / "test.parquet")
    config |= {"train_data": str(options.work / "train.parquet"), "valid_data": test, "test_data": test}
    build_dataset(FeatureProcessor(**config), **config)


def main() -> None:
    options = clock.parse_arguments()
    if options.prepare:
        if not (options.work / "log" / "test.parquet").exists():
            prepare(options)
        return
    steps = clock.StepClock(options.steps, options.threads)
    import torch
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.dataloaders import RankDataLoader
    from fuxictr.pytorch.layers import DIN_Attention, FeatureEmbeddingDict, MLP_Block
    from fuxictr.pytorch.models import BaseModel
    from fuxictr.pytorch.torch_utils import seed_everything

    config = build_settings(options)
    seed_everything(options.seed)
    features = FeatureMap("log", str(options.work / "log"))
    features.load(str(options.work / "log" / "feature_map.json"), config)

    class DIN(BaseModel):
        def __init__(self):
            super().__init__(features, model_id="DIN", gpu=-1, **{
                key: config[key] for key in ("verbose", "metrics", "model_root", "task")
            })  # fmt: skip
            self.embedding = FeatureEmbeddingDict(features, WIDTH)
            self.attention = DIN_Attention(2 * WIDTH, attention_units=[80, 40], hidden_activations="ReLU")
            self.top = MLP_Block(
                input_dim=6 * WIDTH, output_dim=1, hidden_units=[200, 80], hidden_activations="ReLU",
                output_activation=self.output_activation,
            )  # fmt: skip
            self.compile(config["optimizer"], config["loss"], 1e-3)
            self.reset_parameters()
            self.model_to_device()

        def forward(self, inputs):
            ids = self.get_inputs(inputs)
            vectors = self.embedding(ids)
            candidate = torch.cat([vectors["item_id"], vectors["cate_id"]], dim=-1)
            history = torch.cat([vectors["hist_item"], vectors["hist_cate"]], dim=-1)
            interest = self.attention(candidate, history, ids["hist_item"].long() != 0)
            return {"y_pred": self.top(torch.cat([vectors["user_id"], vectors["hour"], candidate, interest], dim=-1))}

    model = DIN()
    batches, valid = RankDataLoader(features, stage="train", **config)
    try:
        model.fit(batches, validation_data=None if options.steps else valid, epochs=1)
    except clock.StepLimitReached:
        print("enough")
    result = steps.result(
        options.batch, name="FuxiCTR", item_rows=model.embedding.embedding_layers["item_id"].num_embeddings
    )
    if not options.steps:
        import pyarrow.parquet as pq

        label = pq.read_table(options.data / "test.parquet", columns=["label"])["label"].to_numpy()
        result["auc"] = clock.auc(label, model.predict(RankDataLoader(features, stage="test", **config)))
    clock.emit(result)


if __name__ == "__main__":
    main()

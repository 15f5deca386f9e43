"""Runner of torch-rechub's DIN with its own DataGenerator and CTRTrainer.

Fixed differences: one attention per history field, no mask (attention includes padding), batch normalization in every
MLP, Dice in the top one.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import clock


def read_columns(path, cap):
    """Read rows of one split in the form of the package: a dictionary of arrays, histories padded at the end."""
    import pandas as pd
    from torch_rechub.utils.data import pad_sequences

    frame = pd.read_parquet(path)
    inputs = {name: frame[name].to_numpy() for name in ("user_id", "hour", "item_id", "cate_id")}
    for name in ("hist_item", "hist_cate"):
        inputs[name] = pad_sequences(frame[name].tolist(), maxlen=cap, padding="post", truncating="pre", value=0)
    return inputs, frame["label"].to_numpy()


def main() -> None:
    options = clock.parse_arguments()
    if options.prepare:  # it has no data format of its own, so the training process pads
        return
    steps = clock.StepClock(options.steps, options.threads)
    import torch
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.ranking import DIN
    from torch_rechub.trainers import CTRTrainer
    from torch_rechub.utils.data import DataGenerator

    torch.manual_seed(options.seed)
    size, width = options.meta, 16
    train, train_label = read_columns(options.data / "train.parquet", size["cap"])
    test, test_label = read_columns(options.data / "test.parquet", size["cap"])

    def make_feature(name, count):
        return SparseFeature(name, count + 1, width, padding_idx=0)

    def make_sequence(name, count, twin):
        return SequenceFeature(name, count + 1, width, pooling="concat", shared_with=twin, padding_idx=0)

    model = DIN(
        features=[make_feature("user_id", size["users"]), make_feature("hour", size["hours"])],
        target_features=[make_feature("item_id", size["items"]), make_feature("cate_id", size["categories"])],
        history_features=[
            make_sequence("hist_item", size["items"], "item_id"),
            make_sequence("hist_cate", size["categories"], "cate_id"),
        ],
        attention_mlp_params={"dims": [80, 40], "activation": "relu"},
        mlp_params={"dims": [200, 80]},
    )
    batches, _, test_batches = DataGenerator(train, train_label).generate_dataloader(
        x_val=test, y_val=test_label, x_test=test, y_test=test_label, batch_size=options.batch
    )
    trainer = CTRTrainer(model, optimizer_params={"lr": 1e-3}, n_epoch=1, model_path=str(options.work))
    try:
        trainer.fit(batches)
    except clock.StepLimitReached:
        print("enough")
    result = steps.result(options.batch, name="torch-rechub")
    if not options.steps:
        result["auc"] = clock.auc(test_label, trainer.predict(model, test_batches))
    clock.emit(result)


if __name__ == "__main__":
    main()

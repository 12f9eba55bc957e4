"""Test one trained network, once: python -m stages.evaluate KIND NAME SEED. The only stage that reads the test split."""

import argparse

import torch

from pipeline import config, files, metrics, tracking
from pipeline.data import batches, loading
from pipeline.explain import cost
from pipeline.report import figures
from pipeline.training import engine
from pipeline.training.checkpoint import load_model
from stages import common


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["teacher", "unguided", "guided"])
    parser.add_argument("name")
    parser.add_argument("seed", type=int)
    args = parser.parse_args()
    (track,) = config.load("tracking")

    folder = common.place(common.MODELS, args.kind, args.name, args.seed)
    results = common.place(common.RESULTS, args.kind, args.name, args.seed)
    model = load_model(folder, made_by=args.kind)
    classes = model.config["pretrained_cfg"]["label_names"]
    device = engine.device_of("auto")
    network = model.network().to(device)
    pixels = engine.Pixels.of(model.config["pretrained_cfg"]["mean"], model.config["pretrained_cfg"]["std"], device)

    test = loading.open_source(loading.pictures(common.PREPARED / "test.arrow", channels=model.image_shape[2]), device)
    shown = batches.evaluation(test, side=model.image_shape[0], batch_size=256)
    counted = engine.evaluate(network, shown, pixels, classes=len(classes), precision=torch.float32)
    counts = engine.to_counts(counted, len(classes))
    scores, costs = metrics.summary(counts), cost.of(network, model.image_shape)
    files.write_json(results / "test.json", scores | costs)
    files.write_csv(results / "confusion.csv", metrics.confusion_rows(counts.confusion, classes))

    about = model.config["espalier"]
    label = f"{args.kind}/{args.name}/{args.seed}"
    tags = {key: str(about[key]) for key in ("kind", "name", "seed", "data_fingerprint")}
    with tracking.run(track, identity=about["identity"], name=label, tags=tags, params={}) as tracked:
        tracked.facts({f"test_{key}": value for key, value in scores.items()})
        tracked.facts({f"cost_{key}": value for key, value in costs.items()})
        tracked.artifacts(results / "confusion.csv")
        tracked.figure(figures.confusion(counts.confusion, classes, title=label), "confusion.png")
    print(f"{label} test accuracy {scores['accuracy']:.4f} loss {scores['loss']:.4f} on {counts.total} pictures")


if __name__ == "__main__":
    common.run(main)

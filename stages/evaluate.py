"""Test one trained network, once: python -m stages.evaluate KIND NAME SEED. The only stage that reads the test split."""

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import config, files, metrics, networks, tracking
from pipeline.config import Evaluation
from pipeline.data import batches, loading, prepared
from pipeline.data.augment.geometry import Frame
from pipeline.data.loading import Take
from pipeline.explain import corruption, cost, insight
from pipeline.metrics import Answers
from pipeline.report import explanations, figures, model_card
from pipeline.training import engine
from pipeline.training.checkpoint import Model, load_model
from stages import common

TEST = common.PREPARED / "test.arrow"
BATCH = 256
MISTAKES = 12  # that are kept to be looked at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["teacher", "unguided", "guided"])
    parser.add_argument("name")
    parser.add_argument("seed", type=int)
    args = parser.parse_args()
    settings, track = config.load("evaluation", "tracking")

    folder = common.place(common.MODELS, args.kind, args.name, args.seed)
    results = common.place(common.RESULTS, args.kind, args.name, args.seed)
    model = load_model(folder, made_by=args.kind)
    classes = model.config["pretrained_cfg"]["label_names"]
    subject = Subject(model)

    logits, labels = engine.logits(subject.network, subject.batches(), subject.pixels)
    counts = engine.to_counts(engine.counts(logits, labels, len(classes)), len(classes))
    answers = _answers(logits, labels)
    seen = subject.insight(answers)
    worse = subject.corrupted(settings, labels.numpy())
    low, high = metrics.interval(int(answers.correct.sum()), counts.total)
    scores = {**metrics.summary(counts), "accuracy_low": low, "accuracy_high": high, **_more(worse, seen)}
    costs = cost.of(subject.network, model.image_shape)
    files.write_json(results / "test.json", scores | costs)
    files.write_csv(results / "confusion.csv", metrics.confusion_rows(counts.confusion, classes))
    files.write_csv(results / "predictions.csv", _rows(answers, classes, prepared.read_split(TEST).names))
    files.write_csv(results / "corrupted.csv", worse)
    _write_arrays(results / "insight.npz", seen)
    files.write(results / "README.md", model_card.render(model.config, folder, scores | costs, counts.confusion))

    about = model.config["espalier"]
    label = f"{args.kind}/{args.name}/{args.seed}"
    tags = {key: str(about[key]) for key in ("kind", "name", "seed", "data_fingerprint")}
    with tracking.run(track, identity=about["identity"], name=label, tags=tags, params={}) as tracked:
        tracked.facts({f"test_{key}": value for key, value in scores.items()})
        tracked.facts({f"cost_{key}": value for key, value in costs.items()})
        tracked.artifacts(results / "README.md", "model")
        for name in ("confusion.csv", "predictions.csv", "corrupted.csv"):
            tracked.artifacts(results / name)
        tracked.figure(figures.confusion(counts.confusion, classes, title=label), "confusion.png")
        tracked.figure(explanations.of_one(seen, answers, classes), "explanation.png")
    print(f"{label} test accuracy {scores['accuracy']:.4f} loss {scores['loss']:.4f} on {counts.total} pictures")


class Subject:
    """A trained network and the test pictures, on one device."""

    def __init__(self, model: Model) -> None:
        device = engine.device_of("auto")
        preprocessing, (self.side, _, channels) = model.config["pretrained_cfg"], model.image_shape
        self.network = model.network().to(device)
        self.pixels = engine.Pixels.of(preprocessing["mean"], preprocessing["std"], device)
        self.test = loading.open_source(loading.pictures(TEST, channels=channels), device)

    def batches(self) -> engine.Batches:
        """All test pictures and their labels."""
        return batches.evaluation(self.test, side=self.side, batch_size=BATCH)

    def pictures(self, rows: np.ndarray) -> np.ndarray:
        """Test pictures as the network's size shows them, (B, H, W, C) uint8."""
        (images,) = self.test.fetch([Take(rows)], Frame(self.side))
        return images.permute(0, 2, 3, 1).cpu().numpy()

    def insight(self, answers: Answers) -> dict[str, np.ndarray]:
        """What `insight.of` finds, the pictures of it that are drawn, and the most confident mistakes."""
        rows, mistakes = insight.choose(answers.labels, insight.SAMPLE), answers.worst(MISTAKES)
        pictures, labels = self.pictures(rows), self.test.labels[torch.from_numpy(rows).to(self.test.labels.device)]
        images = self.pixels(torch.from_numpy(pictures).to(labels.device))
        found = insight.of(self.network, images, labels, patch=networks.default_patch_size(self.side))
        shown = {"rows": rows[: insight.SHOWN], "pictures": pictures[: insight.SHOWN], "mistakes": mistakes}
        return {**found, **shown, **({"mistaken": self.pictures(mistakes)} if len(mistakes) else {})}

    def corrupted(self, settings: Evaluation, labels: np.ndarray) -> list[dict[str, Any]]:
        """Accuracy on some of the test pictures as they are (strength 0) and made worse."""
        rows = insight.choose(labels, settings.corrupted_pictures or insight.SAMPLE)
        pictures, right = self.pictures(rows), torch.from_numpy(labels[rows])
        table = [self._row("none", 0, pictures, right)]
        for kind in corruption.CORRUPTIONS if settings.corrupted_pictures else ():
            for strength in corruption.STRENGTHS:
                table.append(self._row(kind, strength, corruption.corrupt(pictures, kind, strength), right))
        return table

    def _row(self, kind: str, strength: int, pictures: np.ndarray, labels: torch.Tensor) -> dict[str, Any]:
        accuracy = self._accuracy(pictures, labels)
        return {"corruption": kind, "strength": strength, "pictures": len(pictures), "accuracy": accuracy}

    def _accuracy(self, pictures: np.ndarray, labels: torch.Tensor) -> float:
        images = torch.from_numpy(pictures).to(self.pixels.mean.device)
        parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
        logits, labels = engine.logits(self.network, parts, self.pixels)
        return float((logits.argmax(1) == labels).double().mean())


def _answers(logits: torch.Tensor, labels: torch.Tensor) -> Answers:
    confidence, predicted = logits.softmax(1).max(1)
    return Answers(labels.numpy(), predicted.numpy(), confidence.double().numpy())


def _more(worse: list[dict[str, Any]], seen: dict[str, np.ndarray]) -> dict[str, float]:
    """Robustness and block-ness as numbers, where there are any."""
    found = dict(zip(("blockness", "moved_blockness"), seen["blockness"].tolist(), strict=True))
    if worse[1:]:
        found["corrupted_accuracy"] = float(np.mean([row["accuracy"] for row in worse[1:]]))
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _rows(answers: Answers, classes: list[str], names: list[str]) -> list[dict[str, Any]]:
    """One row per test picture, in their order."""
    table = zip(names, answers.labels, answers.predicted, answers.confidence, strict=True)
    return [
        {"picture": name, "actual": classes[label], "predicted": classes[said], "confidence": f"{sure:.6f}"}
        for name, label, said, sure in table
    ]


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    files.write(path, content.getvalue())


if __name__ == "__main__":
    common.run(main)

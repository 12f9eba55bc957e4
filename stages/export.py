"""Take a trained network elsewhere, no stage: python -m stages.export MODEL FORMAT OUT.

mlflow: a folder for `mlflow models serve --env-manager local --model-uri OUT`. torch: a file for `torch.export.load(OUT)`.
onnx: a file for ONNX Runtime. The last two take pixels, uint8 of shape (B, H, W, C), and give probabilities (B, classes).
"""

import argparse
from pathlib import Path

from pipeline import export
from stages import common


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("format", choices=export.FORMATS)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    export.FORMATS[args.format](args.model, args.out)
    print(f"see {args.out}")


if __name__ == "__main__":
    common.run(main)

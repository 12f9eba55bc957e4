"""How fast pictures are prepared, and in how much memory: python -m benchmarks.prepare [--scratch FOLDER].

Folders of synthetic pictures, half JPEG, half PNG, are made on the spot. Each is prepared in a process of its own, whose
memory is what it holds itself (anonymous) and, apart, what it has mapped of files, which the system takes back at need.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.config import Data
from pipeline.data import sources
from pipeline.data.prepare import prepare

RUNS = {"speed": (50_000, 32), "memory, few": (10_000, 64), "memory, many": (100_000, 64)}  # pictures, pixels
BASES = 200  # different pictures; a tail that no decoder reads makes each file's content its own
PAGE = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, help="where the pictures are made for a while; a folder with 2 GB of room")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _measure(Path(args.child[0]), int(args.child[1]))
        return
    for name, (count, size) in RUNS.items():
        with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
            _make(Path(folder, "pictures"), count, size)
            print(f"{name}: {count:,} pictures of {size} px, ", end="", flush=True)
            subprocess.run([sys.executable, "-m", "benchmarks.prepare", "--child", folder, str(size)], check=True)


def _make(root: Path, count: int, size: int) -> None:
    bases = [_encoded(seed, size) for seed in range(BASES)]
    for index in range(count):
        folder = root / f"class {index % 10}" / f"{index // 1000}"
        folder.mkdir(parents=True, exist_ok=True)
        suffix, content = bases[index % BASES]
        (folder / f"{index}.{suffix}").write_bytes(content + index.to_bytes(4, "big"))


def _encoded(seed: int, size: int) -> tuple[str, bytes]:
    """A picture of smooth colour with a little noise, which compresses as photographs do."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    image = Image.fromarray((np.asarray(smooth) * 0.9 + rng.integers(0, 25, (size, size, 3))).astype(np.uint8))
    content = io.BytesIO()
    kind = ("JPEG", "PNG")[seed % 2]
    image.save(content, kind)
    return kind.lower(), content.getvalue()


def _measure(folder: Path, size: int) -> None:
    """Prepare the pictures in `folder` and say how long it took, and how much memory at most."""
    data = Data(
        source="image_folder",
        path=str(folder / "pictures"),
        image_size=size,
        validation_fraction=0.1,
        test_fraction=0.1,
        split_seed=0,
        unreadable="error",
    )
    at_start, peaks, done = _memory(), np.zeros(2), threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            np.maximum(peaks, _memory(), out=peaks)

    threading.Thread(target=watch, daemon=True).start()
    started = time.perf_counter()
    prepare(sources.read(data), data, folder / "prepared")
    seconds = time.perf_counter() - started
    done.set()
    stored = sum(path.stat().st_size for path in (folder / "prepared").iterdir())
    count = sum(1 for _ in (folder / "pictures").rglob("*.*"))
    print(
        f"{stored / 1e6:,.0f} MB stored: {seconds:.1f} s, {count / seconds:,.0f} pictures/s, "
        f"at most {peaks[0] / 1e6:,.0f} MB of its own ({at_start[0] / 1e6:,.0f} at the start), {peaks[1] / 1e6:,.0f} MB mapped"
    )


def _memory() -> np.ndarray:
    """(anonymous, mapped) bytes of this process, as Linux counts them."""
    resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return np.array([resident - shared, shared]) * float(PAGE)


if __name__ == "__main__":
    main()

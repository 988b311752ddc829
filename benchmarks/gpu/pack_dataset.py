"""Make the data file of the training job: as many episodes as fit into 20 MB, with the latents of a trained VAE.

    python3 -m benchmarks.gpu.pack_dataset --dataset DIR --vae DIR [--latents DIR] [--out .gpu_data/small.npz]

The folder is git-ignored by itself; carry it to a lent machine by naming `.gpu_data` in `carry` of the `run` tool, with the
command `python3 -m benchmarks.gpu --data .gpu_data/small.npz`.  Needs the extra 'train' here, and no video decoder there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu.packed import ignore_itself, write_packed
from edgewam.core.errors import EdgewamError
from edgewam.data.dataset import Dataset
from edgewam.data.stats import measure_stats
from edgewam.training.latents import build_cache
from edgewam.training.policy import PolicyTraining
from edgewam.training.weights import load_vae
from edgewam.training.windows import latent_plan

MAX_MB = 20.0


def pack(dataset_path: Path, vae_path: Path, latents: Path, out: Path, max_mb: float) -> tuple[int, int]:
    """Write `out` and return (episodes, bytes).

    Raises:
        EdgewamError: what dataset, VAE or cache refuse, or not even one episode fits.
    """
    config = PolicyTraining(dataset=dataset_path, vae=vae_path)
    dataset = Dataset.open(dataset_path)
    vae, manifest = load_vae(vae_path)
    cache = build_cache(latents, dataset, vae, manifest.digest, latent_plan(config.layout, config.model, config.start_stride, 0))
    stats, origin = measure_stats(dataset), {"dataset": dataset.digest, "vae": manifest.digest}
    per_episode = (cache.images.nbytes + cache.clips.nbytes) / dataset.num_episodes
    episodes = max(1, min(dataset.num_episodes, int(1.3 * max_mb * 1e6 / per_episode)))  # half precision packs a little
    while True:
        size = write_packed(out, dataset, cache, stats, episodes, origin)
        if size <= max_mb * 1e6:
            return episodes, size
        if episodes == 1:
            out.unlink()
            raise EdgewamError(f"One episode takes {size / 1e6:.1f} MB, more than {max_mb} MB. Record shorter episodes.")
        episodes = max(1, min(episodes - 1, int(episodes * max_mb * 1e6 / size)))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu.pack_dataset", description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="LeRobot v3.0 dataset (edgewam collect)")
    parser.add_argument("--vae", type=Path, required=True, help="trained VAE artifact")
    parser.add_argument("--latents", type=Path, help="latent cache to use or continue (default: temporary)")
    parser.add_argument("--out", type=Path, default=Path(".gpu_data/small.npz"))
    parser.add_argument("--max-mb", type=float, default=MAX_MB)
    a = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="edgewam_latents_") as scratch:
            episodes, size = pack(a.dataset, a.vae, a.latents or Path(scratch) / "latents", a.out, a.max_mb)
    except EdgewamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    ignore_itself(a.out)
    print(f"{a.out}: {episodes} episodes, {size / 1e6:.1f} MB. On a lent machine: carry ['{a.out.parent}'] and run")
    print(f"python3 -m benchmarks.gpu --data {a.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

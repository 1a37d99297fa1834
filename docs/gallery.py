"""The gallery: every figure of small runs of the studies on the shipped model, and the page of the site that shows them.

``python docs/gallery.py`` runs the studies into build/gallery, where the same command continues, and writes docs/gallery.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "build" / "gallery"
ARMS = "prefill_1,random_steer,random_circuit,wrong_emotion,wrong_payload,random_tuned,ablate,random_ablate"
STUDIES = {
    "emotion_circuits": (
        "Emotion circuits",
        f"--limit 4 --sweep-limit 1 --finalists 1 --dose-step 3 --draws 1 --curve-draws 1 --max-new-tokens 24 "
        f"--attn-implementation eager --arms {ARMS}",
    ),
    "circuit_discovery": ("Circuit discovery", "--limit 8 --pairs-per-skeleton 1 --exact-pairs 0 --edges 20"),
    "emotion_vectors": ("Emotion vectors", "--limit 3 --doses 0.5,1,2 --draws 1"),
    "goemotions_steering": ("GoEmotions steering", "--limit 4 --doses 0.5,1,2 --draws 1"),
    "emotion_knowledge": (
        "Emotion knowledge",
        "--emotions joy,love,pride,fear,anger,sadness,grief,disgust --seeds 1,2 --epochs 1 --limit 8 --draws 20 --k 20",
    ),
}
"""Study → its title, and the flags of its small run."""
ENDINGS = (".svg", ".png")
"""Of a figure, the best first."""


def run(study: str, flags: str) -> Path:
    """A small run of a study, or what is left of one."""
    out = RUNS / study
    command = [sys.executable, f"experiments/{study}.py", *flags.split(), "--out", str(out)]
    done = subprocess.run(
        command, cwd=HERE.parent, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return out


def figures(out: Path) -> list[Path]:
    """The figures of a run, each in its best form."""
    found: dict[str, Path] = {}
    for ending in reversed(ENDINGS):
        found |= {path.stem: path for path in sorted((out / "figures").glob(f"*{ending}"))}
    return [found[name] for name in sorted(found)]


def write() -> None:
    """The page and its pictures."""
    folder = HERE / "gallery"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    lines = [
        "# Gallery", "",
        "Every figure of the studies, from small runs on the shipped model: what they look like, not what was found.",
        "`python docs/gallery.py` made them.", "",
    ]  # fmt: skip
    for study, (title, flags) in STUDIES.items():
        lines += [f"## {title}", "", f"`experiments/{study}.py {flags}`", ""]
        for picture in figures(run(study, flags)):
            shutil.copy(picture, folder / f"{study}-{picture.name}")
            lines += [
                f"### {picture.stem.replace('_', ' ')}",
                "",
                f"![{title}: {picture.stem}]({study}-{picture.name})",
                "",
            ]
    (folder / "index.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    write()

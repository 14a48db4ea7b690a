"""Result directories as an evaluation leaves them, with made-up answers that resemble real ones."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.special import ndtri
from sklearn.datasets import load_sample_images

from flamingo_jax.evaluate.metrics.roc_auc import roc_auc

SHOTS = (0, 4, 8, 16, 32)
# Of the two photographs, by turns.
CAPTIONS = (
    ("a temple with a curved roof", "a tower beside a lake", "trees in front of a pagoda"),
    ("a pink flower in a garden", "a close up of a dahlia", "a flower with many petals"),
)
QUESTIONS = {
    "what color": ("What color is the flower?", ("pink", "red", "purple")),
    "is the": ("Is the roof made of stone?", ("yes", "no", "yes")),
    "how many": ("How many towers are there?", ("2", "3", "1")),
    "what is": ("What is behind the trees?", ("temple", "pagoda", "building")),
}
# Means that rise with shots, and what is lost without the demonstrations' own images.
LEVELS = {
    "coco": (74, 81, 88, 92, 94),
    "vqav2": (45, 49, 51, 52, 52.5),
    "hateful_memes": (52, 54, 55, 56, 57),
}
LOSS = {"own": 0.0, "shuffled": 5.0, "blank": 9.0, "removed": 11.0}
METRICS = {"coco": "cider", "vqav2": "vqa_accuracy", "hateful_memes": "roc_auc"}


@dataclass(frozen=True)
class MadeUp:
    """An evaluation. `skill` is added to every score; `missing` images are not written."""

    examples: int = 60
    seeds: tuple[int, ...] = (0, 1, 2)
    skill: float = 0.0
    missing: int = 1
    tasks: tuple[str, ...] = tuple(LEVELS)

    def write(self, out: Path, **manifest) -> Path:
        root = out / "data"
        pictures = self._pictures(root)
        for task in self.tasks:
            for i, shots in enumerate(SHOTS):
                settings = [("random", seed, "own") for seed in self.seeds] + [("rices", 0, "own")]
                if shots == 4:
                    settings += [("random", 0, images) for images in LOSS if images != "own"]
                for demonstrations, seed, images in settings:
                    level = LEVELS[task][i] + self.skill - LOSS[images]
                    level += 3 * (demonstrations == "rices")
                    name = f"{shots}-{demonstrations}-seed{seed}"
                    folder = out / task / (name if images == "own" else f"{name}-images={images}")
                    rng = np.random.default_rng([seed, shots, len(task), len(images)])
                    self._write_run(folder, task, shots, level, pictures, images, rng)
        content = {
            "model": {"path": "models/of-3b", "hash": "4f1c…"},
            "settings": {"data_root": str(root), "shots": list(SHOTS), "metric_mode": "standard"},
            "versions": {"jax": "0.10.2"},
        }
        (out / "manifest.json").write_text(json.dumps(content | manifest))
        return out

    def _pictures(self, root: Path) -> list[str]:
        """Cuts of scikit-learn's two photographs; the last `missing` ones have no file."""
        root.mkdir(parents=True)
        rng = np.random.default_rng(0)
        photographs = load_sample_images().images
        names = []
        for i in range(24):
            photograph = photographs[i % 2]
            top, left = rng.integers(0, (220, 400))
            names.append(f"{i:02d}.jpg")
            if i < 24 - self.missing:
                cut = Image.fromarray(photograph[top : top + 200, left : left + 240])
                cut.save(root / names[-1])
        return names

    def _write_run(self, folder, task, shots, level, pictures, images, rng) -> None:
        folder.mkdir(parents=True)
        records = [
            self._record(f"{task}-{i}", task, shots, level, pictures, images, rng)
            for i in range(self.examples)
        ]
        if task == "hateful_memes":
            labels, chances = zip(*((r["label"], r["probability"]) for r in records), strict=True)
            score = 100 * roc_auc(labels, chances)
        else:
            score = float(np.mean([r["score"] for r in records]))
        summary = {
            "metric": METRICS[task], "mode": "standard", "score": score, "n": len(records),
            "skipped": 2, "note": "",
        }  # fmt: skip
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "examples.jsonl").write_text(lines)
        (folder / "score.json").write_text(json.dumps(summary))

    def _record(self, key, task, shots, level, pictures, images, rng) -> dict:
        chosen = [pictures[i] for i in rng.integers(0, len(pictures), max(shots, 2) + 1)]
        kind = list(QUESTIONS)[rng.integers(len(QUESTIONS))]
        question, answers = QUESTIONS[kind]
        mark = "<image>" if shots and images != "removed" else ""
        if task == "coco":
            ask = "Output:"
            told = [str(rng.choice(CAPTIONS[int(name[:2]) % 2])) for name in chosen]
        elif task == "vqav2":
            ask, told = (
                f"Question:{question} Short answer:",
                rng.choice(answers, len(chosen)).tolist(),
            )
        else:
            ask = "is an image with: 'nice hat' written on it. Is it hateful? Answer:"
            told = rng.choice(["yes", "no"], len(chosen)).tolist()
        shown = "".join(f"{mark}{ask}{text}<|endofchunk|>\n" for text in told[:-1])
        context = [] if not mark else ["" if images == "blank" else c for c in chosen[:-1]]
        record = {
            "id": key, "prompt": f"{shown}<image>{ask}", "images": [*context, chosen[-1]],
            "demonstrations": [f"train-{c}" for c in chosen[:-1]], "raw": f" {told[-1]}\nOutput",
            "answer": told[-1], "references": [told[-1]], "score": None,
        }  # fmt: skip
        if task == "coco":
            record["score"] = float(rng.gamma(2.2, level / 2.2))
            record["references"] = list(CAPTIONS[int(chosen[-1][:2]) % 2])
            if record["score"] < 20:
                record["answer"] = CAPTIONS[1 - int(chosen[-1][:2]) % 2][0]
        elif task == "vqav2":
            record["score"] = 100 * float(np.clip(rng.normal(level / 100, 0.4), 0, 1).round(1))
            if record["score"] < 50:
                record["references"] = [str(a) for a in answers if a != told[-1]]
            record |= {"question_type": kind, "question": question}
        else:
            label = int(key.split("-")[-1]) % 2
            shift = np.sqrt(2) * ndtri(level / 100)  # of the positives, for this area
            chance = 1 / (1 + np.exp(-rng.normal(shift * (label - 0.5))))
            record |= {"label": label, "probability": float(chance)}
        return record

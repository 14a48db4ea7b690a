"""OpenFlamingo's evaluation (arXiv 2308.01390): its tasks, prompts and decoding.

`--config.sampling=openflamingo --config.metric_mode=openflamingo` also draws demonstrations and
counts answers as its code does; `--config.demonstrations=rices --config.rices_model=DIR` chooses
the demonstrations with the most similar images.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "data_root": "data/eval",
            "tasks": {
                "coco": {},
                "flickr30k": {},
                "vqav2": {},
                "okvqa": {},
                "textvqa": {},
                "vizwiz": {},
                "hateful_memes": {},
            },
            "shots": (0, 4, 8, 16, 32),
            "seeds": (42, 43, 44),
            "ensemble": 6,
        }
    )

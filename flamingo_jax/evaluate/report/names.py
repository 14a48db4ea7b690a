"""What tasks and metrics are called."""

TITLES = {
    "coco": "COCO captions", "flickr30k": "Flickr30k captions", "vqav2": "VQAv2",
    "okvqa": "OK-VQA", "textvqa": "TextVQA", "vizwiz": "VizWiz", "hateful_memes": "Hateful Memes",
    "imagenet": "ImageNet", "scienceqa": "ScienceQA",
    "scienceqa_thought": "ScienceQA, chain of thought",
}  # fmt: skip
UNITS = {
    "cider": "CIDEr × 100", "vqa_accuracy": "VQA accuracy, %", "accuracy": "accuracy, %",
    "roc_auc": "ROC AUC × 100",
}  # fmt: skip

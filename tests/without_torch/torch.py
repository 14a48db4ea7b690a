"""In place of PyTorch, which training does without: so it is tested, and starts seconds sooner."""

raise ImportError("training needs no PyTorch")

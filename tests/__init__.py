import os
from pathlib import Path

_TESTS = Path(__file__).parent
# A `PYTHONPATH` for commands that are to do without PyTorch.
WITHOUT_TORCH = os.pathsep.join([str(_TESTS / "without_torch"), str(_TESTS.parent)])

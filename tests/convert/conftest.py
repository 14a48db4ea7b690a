import pytest

from tests.convert import goldens, torch_models


@pytest.fixture(scope="session", params=goldens.CASES)
def golden(request):
    """Each case in turn."""
    return goldens.load(request.param)


@pytest.fixture(scope="session")
def mpt():
    """The family of which a part is committed."""
    return goldens.load("mpt")


@pytest.fixture(scope="session")
def backbones(tmp_path_factory):
    """Directories of a small MPT and a small CLIP in torch."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("backbones")
    torch_models.save_language_model("mpt", folder / "lm")
    torch_models.save_vision(folder / "vision")
    return folder

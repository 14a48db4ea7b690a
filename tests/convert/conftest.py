import pytest

from tests.convert import goldens, torch_models


@pytest.fixture(scope="session", params=goldens.NAMES)
def golden(request):
    """Each golden family in turn; those that are not at hand are skipped."""
    return goldens.load_or_skip(request.param)


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

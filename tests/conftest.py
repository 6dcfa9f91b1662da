"""What the tests share: the demo pair, loaded once, and damaged copies of it."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

# Read by numpy and torch as they are imported: for matrices as small as the tests', threads cost
# more than they bring, and on a busy machine many times more.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings

import mirror_edge
from mirror_edge import bundle as bundles

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("steady", deadline=None)
settings.load_profile("steady")


@pytest.fixture(autouse=True, scope="session")
def _signals() -> None:
    """Programs that tests start hear Ctrl-C and a hang-up, though the tests' own parent may not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is kept for later runs, unless a place for it is named."""
    os.environ.setdefault("MIRROR_EDGE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    return (Path(__file__).parent / "prompts.txt").read_text().splitlines()


@pytest.fixture(scope="session")
def demo() -> Iterator[mirror_edge.Model]:
    """The demo pair, target and draft on a thread each."""
    with mirror_edge.load(target_threads=1, draft_threads=1) as model:
        yield model


@pytest.fixture
def demo_copy(tmp_path: Path) -> Path:
    """A copy of the demo pair that a test may damage."""
    return Path(shutil.copytree(bundles.demo(), tmp_path / "bundle"))


@pytest.fixture
def changed_target(demo_copy: Path) -> Path:
    """The demo pair with every seventh weight of its target a fifth larger."""
    file = demo_copy / "target" / "weights.bin"
    weights = np.fromfile(file, np.float32)
    weights[::7] *= 1.2
    weights.tofile(file)
    spec = bundles.read(demo_copy, verify=False).manifest
    bundles.write_manifest(demo_copy, "other", spec.target, spec.draft)
    return demo_copy


@pytest.fixture(scope="session")
def with_random_draft(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mirror_edge.Model]:
    """The demo target beside a draft whose weights are shuffled: fluent nonsense."""
    folder = shutil.copytree(bundles.demo(), tmp_path_factory.mktemp("random") / "bundle")
    weights = folder / "draft" / "weights.bin"
    values = np.fromfile(weights, dtype=np.float32)
    np.random.default_rng(0).shuffle(values)
    values.tofile(weights)
    spec = bundles.read(folder, verify=False).manifest
    bundles.write_manifest(folder, "random draft", spec.target, spec.draft)
    with mirror_edge.load(folder, target_threads=1, draft_threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def quick_conversions() -> Iterator[None]:
    """Spare coremltools its checks between passes, and walks through all that torch has loaded."""
    from coremltools.converters.mil.mil import Program

    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "validate", lambda *_, **__: None)
        yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def coreml(
    tmp_path_factory: pytest.TempPathFactory,
    quick_conversions: None,  # noqa: ARG001
) -> Path:
    """The demo pair as Core ML packages in fp32, exported from its ONNX bundle."""
    from mirror_edge.export import export

    folder = tmp_path_factory.mktemp("coreml") / "demo"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Warnings of third-party code.
        export(bundles.demo(), bundles.demo(), folder, precision="fp32", format="coreml")
    return folder

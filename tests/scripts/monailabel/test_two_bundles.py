"""The app beside another bundle in the same process."""

import importlib.util
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("monailabel") is None, reason="needs MONAI Label: make test-label"
)
FOREIGN_PACKAGE = """
import sys, types
for name in ("transforms", "bundle", "transforms.load"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__file__ = "/other/" + name + "/__init__.py"
from monailabel.utils.others.class_utils import module_from_file
main = module_from_file("main", sys.argv[1])
from pydoc import locate
files = [sys.modules[locate(name).__module__].__file__ for name in sys.argv[2:]]
print("FOUND", all(str(main.BUNDLE_ROOT) in file for file in files))
"""


def test_another_bundle_with_packages_of_the_same_names_does_not_lend_its_code(copy_bundle):
    clone = copy_bundle("beside_another")
    targets = ("transforms.load.LoadImageCTPAd", "bundle.networks.vqgan.build_vqgan")
    app = str(clone / "scripts" / "monailabel" / "main.py")
    words = [sys.executable, "-W", "ignore", "-c", FOREIGN_PACKAGE, app]

    done = subprocess.run(
        [*words, *targets], cwd=clone.parent, capture_output=True, encoding="utf-8", timeout=120
    )

    assert "FOUND True" in done.stdout, done.stderr[-2000:]

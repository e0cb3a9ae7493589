"""The app: `monailabel start_server --app scripts/monailabel --studies DIR`; see docs/monailabel.md."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BUNDLE_ROOT = Path(__file__).resolve().parents[2]
# Another bundle in this process may have packages of the same names; ours must win, also in lazy imports.
for _name in [name for name in sys.modules if name.partition(".")[0] in ("bundle", "transforms", "scripts")]:
    if not str(getattr(sys.modules[_name], "__file__", "")).startswith(f"{BUNDLE_ROOT}{os.sep}"):
        del sys.modules[_name]
sys.path[:] = [str(BUNDLE_ROOT), *(path for path in sys.path if path != str(BUNDLE_ROOT))]

from fastapi import HTTPException  # noqa: E402
from monailabel.interfaces.app import MONAILabelApp  # noqa: E402

from bundle.checkpoints.file import CheckpointError  # noqa: E402
from bundle.run.errors import own_message, short_message  # noqa: E402
from scripts.monailabel.encode import EncodingTask  # noqa: E402
from scripts.monailabel.infer import ReconstructionTask  # noqa: E402
from scripts.monailabel.train import PatchTrainingTask  # noqa: E402

logger = logging.getLogger(__name__)

MODEL = "ctpa_vqgan"
ENCODER = "ctpa_vqgan_codes"


class CTPAReconstructionApp(MONAILabelApp):
    """Serves `models/model.pt` and trains on the images of the datastore, labelled or not.

    A model that training or `python -m scripts.install` puts there serves the next request.

    Args:
        app_dir: this folder.
        studies: folder of the volumes.
        conf: `--conf KEY VALUE` of the command line; `train_configs` lists configs to merge on train.yaml.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        metadata = json.loads((BUNDLE_ROOT / "metadata.json").read_text(encoding="utf-8"))
        self._model_path = BUNDLE_ROOT / "models" / "model.pt"
        self._model_stamp: tuple[int, int] | None = None
        self._refusal = ""
        super().__init__(
            app_dir,
            studies,
            conf,
            name=metadata["name"],
            description=metadata["description"],
            version=metadata["version"],
        )

    def init_infers(self) -> dict[str, Any]:
        """The reconstruction and the encoding, or nothing as long as there is no usable model."""
        self._model_stamp = self._stamp()
        try:
            tasks = ((MODEL, ReconstructionTask), (ENCODER, EncodingTask))
            return {name: task(BUNDLE_ROOT, self.conf) for name, task in tasks}
        except CheckpointError as error:
            self._refusal = str(error)
            logger.warning("%s", error)
            return {}

    def init_trainers(self) -> dict[str, Any]:
        """The training on patches."""
        return {MODEL: PatchTrainingTask(BUNDLE_ROOT, self.conf)}

    def info(self) -> dict[str, Any]:
        """See `MONAILabelApp`; of the model that is installed now."""
        self._follow_model()
        return super().info()

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Reconstructs or encodes one volume.

        Raises:
            HTTPException: 404 for an unknown model or image, 409 without a model, 422 with this project's
                message for a file that cannot be used.
        """
        image = request.get("image")
        try:
            with _http_errors():
                self._follow_model()
                self._check_request(request, datastore or self.datastore())
                return super().infer(request, datastore)
        except HTTPException:
            _remove_upload(image)
            raise

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """Runs one training round and installs its result.

        Raises:
            HTTPException: 422 with this project's message for settings or data that cannot be used.
        """
        with _http_errors():
            return super().train(request)

    def _check_request(self, request: dict[str, Any], datastore: Any) -> None:
        if request.get("model") not in (MODEL, ENCODER):
            raise HTTPException(
                404, f"`model` must be {MODEL} or {ENCODER}, got {request.get('model')}; see GET /info/"
            )
        if MODEL not in self._infers:
            raise HTTPException(409, self._refusal)
        image = request.get("image")
        # An upload is a temporary file by now.
        if isinstance(image, str) and not os.path.exists(image) and not datastore.get_image_uri(image):
            raise HTTPException(
                404,
                f"`image` must be an id of the datastore, got {image!r}; see GET /datastore/?output=all",
            )

    def _follow_model(self) -> None:
        if self._stamp() != self._model_stamp:
            self._infers = self.init_infers()

    def _stamp(self) -> tuple[int, int] | None:
        if not self._model_path.is_file():
            return None
        state = self._model_path.stat()
        return state.st_mtime_ns, state.st_ino


def _remove_upload(image: Any) -> None:
    """Removes the copy of a refused upload, a patient's data, which Label removes only after success."""
    if isinstance(image, str) and os.path.dirname(image) == tempfile.gettempdir():
        if os.path.basename(image).startswith(tempfile.gettempprefix()):
            Path(image).unlink(missing_ok=True)


@contextmanager
def _http_errors() -> Iterator[None]:
    """Turns an error into an answer; Label itself would answer "Internal Server Error" and no more."""
    try:
        yield
    except HTTPException:
        raise
    except Exception as error:
        message = own_message(error)
        if message is not None:
            logger.warning("refused: %s", message)
            raise HTTPException(422, message) from error
        logger.exception("request failed")
        raise HTTPException(500, short_message(error)) from error

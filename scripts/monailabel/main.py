"""Defines the app of `monailabel start_server --app scripts/monailabel`; see docs/monailabel.md."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
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
from bundle.data.volumes.formats import read_header  # noqa: E402
from bundle.run.errors import own_message, short_message  # noqa: E402
from bundle.run.names import printable, shown  # noqa: E402
from scripts.monailabel.access import Access  # noqa: E402
from scripts.monailabel.encode import EncodingTask  # noqa: E402
from scripts.monailabel.infer import FOLDER, ReconstructionTask  # noqa: E402
from scripts.monailabel.log_lines import make_logs_printable  # noqa: E402
from scripts.monailabel.service import FULL, build_service  # noqa: E402
from scripts.monailabel.train import PatchTrainingTask  # noqa: E402
from scripts.monailabel.values import (  # noqa: E402
    INFERENCE,
    TRAINING,
    RequestError,
    check_values,
    largest_volume,
)

logger = logging.getLogger(__name__)

MODEL = "ctpa_vqgan"
ENCODER = "ctpa_vqgan_codes"
# Entries that MONAI Label adds to a training request on its way to the training process.
ADDED_BY_LABEL = ("model", "bundle_path", "gpus", "local_rank")
# Their INFO lines hold whole requests and file names, which may name a patient.
TALKATIVE = ("monailabel.datastore.local", "monailabel.utils.async_tasks.task")


class CTPAReconstructionApp(MONAILabelApp):
    """Serves `models/model.pt` and trains on the images of the datastore, labelled or not.

    If training or `python -m scripts.install` replaces that file, the next request uses the new model.

    Args:
        app_dir: this folder.
        studies: folder of the volumes.
        conf: `--conf KEY VALUE` of the command line; `train_configs` lists configs to merge on train.yaml,
            and `Access.from_conf` lists the keys that open the server to others.

    Raises:
        AccessError: if `conf` is invalid or would open too much.
        RequestError: if `max_voxels` is not a whole number.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        make_logs_printable()
        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        metadata = json.loads((BUNDLE_ROOT / "metadata.json").read_text(encoding="utf-8"))
        self.access = Access.from_conf(conf or {})
        self.max_voxels = largest_volume(conf or {})
        self._model_path = BUNDLE_ROOT / "models" / "model.pt"
        self._model_stamp: tuple[int, int] | None = None
        self._refusal = ""
        # Label's tasks change sys.path and sys.modules while they are built and while they run
        self._lock = threading.Lock()
        super().__init__(
            app_dir,
            studies,
            conf,
            name=metadata["name"],
            description=metadata["description"],
            version=metadata["version"],
        )

    def server_mode(self, mode: bool) -> None:
        """Puts this app's own service in place of MONAI Label's endpoints, before the first request.

        Raises:
            RuntimeError: if another ASGI application than MONAI Label's serves, which would answer everybody.
        """
        super().server_mode(mode)
        if not mode:
            return
        label = sys.modules.get("monailabel.app")
        if label is None or label.app.middleware_stack is None:
            raise RuntimeError("`--uvicorn_app` must be monailabel.app:app, its default; leave it out")
        label.app.middleware_stack = build_service(self, self.access)
        make_logs_printable()

    def init_infers(self) -> dict[str, Any]:
        """Returns the reconstruction and the encoding task, or none while there is no usable model."""
        self._model_stamp = self._stamp()
        try:
            tasks = ((MODEL, ReconstructionTask), (ENCODER, EncodingTask))
            return {name: task(BUNDLE_ROOT, self.conf) for name, task in tasks}
        except CheckpointError as error:
            self._refusal = _without_paths(str(error), {})
            logger.warning("%s", error)
            return {}

    def init_trainers(self) -> dict[str, Any]:
        """Returns the training on patches."""
        return {MODEL: PatchTrainingTask(BUNDLE_ROOT, self.conf)}

    def info(self) -> dict[str, Any]:
        """Describes the app with the model that is installed now, or in use while a request runs."""
        if self._lock.acquire(blocking=False):
            try:
                self._follow_model()
            finally:
                self._lock.release()
        return super().info()

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Runs one inference whose result stays in a new folder below the temporary one.

        Raises:
            HTTPException: see `infer_in_folder`.
        """
        return self.infer_in_folder(request, Path(tempfile.mkdtemp(prefix="ctpa_vqgan_")), None)

    def infer_in_folder(self, request: dict[str, Any], folder: Path, upload: Path | None) -> dict[str, Any]:
        """Reconstructs or encodes one volume.

        Args:
            request: `model`, `image` (an id of the datastore, or a path in a folder that the operator opened)
                and what `INFERENCE` lists.
            folder: for the result; the caller removes it.
            upload: the volume itself; None = the one that `image` names.

        Raises:
            HTTPException: 403 for a path, 404 for an unknown model or image, 409 without a model, 422 with
                this project's message for a request or a file that cannot be used, 507 for a full disk.
        """
        names: dict[str, str] = {str(folder): "the request"}
        with _http_errors(names):
            model, image = request.get("model"), request.get("image")
            settings = {key: value for key, value in request.items() if key not in ("model", "image")}
            check_values(settings, INFERENCE)
            if model not in (MODEL, ENCODER):
                raise HTTPException(
                    404, f"`model` must be {MODEL} or {ENCODER}, got {shown(model)}; see GET /info/"
                )
            path = upload or self._path_of(image)
            names[str(path)] = "the file" if upload else "the image"
            self._check_size(path)
            with self._lock:
                self._follow_model()
                if MODEL not in self._infers:
                    raise HTTPException(409, self._refusal)
                # MONAI Label's INFO lines hold the request with its path
                wanted = {"model": model, "image": str(path), "logging": "WARNING", **settings}
                result = super().infer({**wanted, FOLDER: str(folder)})
            logger.info("%s: served one volume in %s s", model, result["params"]["latencies"]["total"])
            return result

    def check_training(self, model: str, given: Any) -> dict[str, Any]:
        """Returns the settings of a training round if all can be used.

        Raises:
            HTTPException: 404 for an unknown model, 422 naming the setting.
        """
        with _http_errors({}):
            if model != MODEL:
                raise HTTPException(404, f"`model` must be {MODEL}, got {shown(model)}; see GET /info/")
            settings = check_values(given, TRAINING)
            self._trainers[MODEL].check(settings)
            return settings

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """Runs one training round and installs its result.

        Raises:
            HTTPException: 422 with this project's message for settings or data that cannot be used.
        """
        with _http_errors({f"{self.studies}{os.sep}": ""}):
            settings = {key: value for key, value in request.items() if key not in ADDED_BY_LABEL}
            settings = self.check_training(request.get("model", ""), settings)
            return super().train({"model": MODEL, **settings})

    def _path_of(self, image: Any) -> Path:
        """Returns the volume that a request names; looks only into the datastore and opened folders."""
        if not isinstance(image, str) or not image:
            raise RequestError(
                f"`image` must be an id of the datastore, got {shown(image)}; see GET /datastore/?output=all"
            )
        known = self.datastore().get_image_uri(image)
        path = Path(known or image)
        if not known and not (path.is_absolute() and self.access.allows_path(path)):
            # the answer is the same whether the file exists or not
            is_path = os.sep in image
            advice = (
                "the operator opens a folder with --conf allow_folders"
                if is_path
                else "see GET /datastore/?output=all"
            )
            raise HTTPException(
                403 if is_path else 404,
                f"`image` must be an id of the datastore, got {shown(image)}; {advice}",
            )
        if not os.path.exists(path):  # pathlib would raise an error for a very long name
            raise HTTPException(
                404, f"`image`: {shown(image)} is no longer there; see GET /datastore/?output=all"
            )
        if not (path.is_file() or path.is_dir()):
            raise RequestError(
                f"`image`: {shown(image)} must be a file, it is a pipe, a device or a socket; replace it"
            )
        return path

    def _check_size(self, path: Path) -> None:
        """Refuses a volume that declares more voxels than the operator allows; none has been unpacked."""
        shape = read_header(path).shape
        if math.prod(map(int, shape)) > self.max_voxels:
            raise RequestError(
                f"`image` must hold at most {self.max_voxels:,} voxels, got {' x '.join(map(str, shape))}; "
                "the operator allows more with --conf max_voxels N"
            )

    def _follow_model(self) -> None:
        if self._stamp() != self._model_stamp:
            self._infers = self.init_infers()

    def _stamp(self) -> tuple[int, int] | None:
        if not self._model_path.is_file():
            return None
        state = self._model_path.stat()
        return state.st_mtime_ns, state.st_ino


def _without_paths(message: str, names: Mapping[str, str]) -> str:
    """Replaces the server's paths, which may hold a patient's name, by words; escapes control characters."""
    for path in sorted(names, key=len, reverse=True):
        message = message.replace(path, names[path])
    message = message.replace(f"{BUNDLE_ROOT}{os.sep}", "")
    return "\n".join(printable(line) for line in message.splitlines())


@contextmanager
def _http_errors(names: Mapping[str, str]) -> Iterator[None]:
    """Turns an error into an answer; MONAI Label itself would only say "Internal Server Error"."""
    try:
        yield
    except HTTPException:
        raise
    except Exception as error:
        is_full, message = _is_full(error), own_message(error)
        if message is not None and not is_full:
            message = _without_paths(message, names)
            logger.warning("refused: %s", message)
            raise HTTPException(422, message) from error
        logger.exception("request failed")
        if is_full:
            raise HTTPException(
                507, "the disk of the server is full; nothing was kept, make room there"
            ) from error
        raise HTTPException(500, _without_paths(short_message(error), names)) from error


def _is_full(error: BaseException | None) -> bool:
    """Tells whether a full disk caused an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__
    return False

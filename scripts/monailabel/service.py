"""Defines the endpoints that the server answers; none of MONAI Label's own is served unchanged.

MONAI Label's other endpoints read and write paths, replace the model, unpack archives, relay requests or show
logs.
"""

from __future__ import annotations

import asyncio
import errno
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from monailabel.config import settings as label_settings
from monailabel.endpoints import datastore, login, train
from monailabel.endpoints.user.auth import RBAC
from monailabel.utils.async_tasks.task import AsyncTask
from requests_toolbelt import MultipartEncoder
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message

from bundle.run.names import printable, shown
from scripts.monailabel.access import Access, Guard

OUTPUTS = ("image", "json", "all")
# Allowed suffixes of uploads, and the names of their copies, since a file's own name may name a patient.
UPLOADS = {".nii.gz": ".nii.gz", ".nii": ".nii", ".dcm": ".dcm", ".dicom": ".dcm", ".ima": ".dcm"}
MAX_JSON_BYTES = 64 * 1024
CHUNK_BYTES = 1024 * 1024
BYTES_OF_VOXEL = 8  # of the widest voxels that a file may have
POLL_S = 0.2
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_FAILED = re.compile(r"HTTPException: (\d{3}): (.*)", re.DOTALL)


class LabelApp(Protocol):
    """The part of the app that the endpoints use.

    Attributes:
        max_voxels: most voxels of a volume that a request may bring.
    """

    max_voxels: int

    def info(self) -> dict[str, Any]:
        """Describes the app; see `MONAILabelApp`."""

    def infer_in_folder(self, request: dict[str, Any], folder: Path, upload: Path | None) -> dict[str, Any]:
        """Runs one inference that writes into `folder` only."""

    def check_training(self, model: str, given: Any) -> dict[str, Any]:
        """Returns the settings of a training round if all can be used."""


def build_service(app: LabelApp, access: Access) -> ASGIApp:
    """Builds the application that answers requests.

    Args:
        app: does the work.
        access: decides who may use the server.
    """
    service = FastAPI(title="ctpa_vqgan", docs_url=None, redoc_url=None)
    service.add_middleware(
        CORSMiddleware,
        allow_origins=sorted(access.origins),
        allow_credentials=True,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
    )
    service.add_exception_handler(StarletteHTTPException, _answer_error)
    service.add_exception_handler(RequestValidationError, _answer_invalid)
    if label_settings.MONAI_LABEL_AUTH_ENABLE:
        service.include_router(login.router, prefix=label_settings.MONAI_LABEL_API_STR)
    service.include_router(_endpoints(app), prefix=label_settings.MONAI_LABEL_API_STR)
    return Guard(service, access)


def _endpoints(app: LabelApp) -> APIRouter:
    user = [Depends(RBAC(label_settings.MONAI_LABEL_AUTH_ROLE_USER))]
    admin = [Depends(RBAC(label_settings.MONAI_LABEL_AUTH_ROLE_ADMIN))]
    router = APIRouter()
    router.add_api_route("/info/", app.info, methods=["GET"], dependencies=user)
    router.add_api_route("/datastore/", _images, methods=["GET"], dependencies=user)
    router.add_api_route("/train/", train.status, methods=["GET"], dependencies=user)
    router.add_api_route("/train/", train.stop, methods=["DELETE"], dependencies=admin)
    router.add_api_route("/train/{model}", _training(app), methods=["POST"], dependencies=admin)
    router.add_api_route("/infer/{model}", _inference(app), methods=["POST"], dependencies=user)
    return router


def _images(output: str = "stats") -> Any:
    if output not in ("stats", "all"):
        raise HTTPException(422, f"`output` must be stats or all, got {shown(output)}; correct it")
    return datastore.datastore(datastore.ResultType(output))


def _inference(app: LabelApp) -> Callable[..., Any]:
    turn = asyncio.Lock()

    async def infer(request: Request, model: str) -> Response:
        output = _check_query(request.query_params)
        async with _form_of(request, app.max_voxels * BYTES_OF_VOXEL) as form, _own_folder() as folder:
            asked = _merged(model, request.query_params.get("image", ""), form)
            upload = await run_in_threadpool(_save_upload, form, folder)
            if upload and asked["image"]:
                raise HTTPException(422, "`image` and a file were both given; leave one out")
            async with turn:
                result = await run_in_threadpool(app.infer_in_folder, asked, folder, upload)
            return _answer(result, output)

    return infer


def _training(app: LabelApp) -> Callable[..., Any]:
    async def start(request: Request, model: str, run_sync: bool = False, enqueue: bool = False) -> Any:
        wanted = app.check_training(model, await _json_of(request))
        task, reason = AsyncTask.run("train", request={"model": model}, params=wanted, enqueue=enqueue)
        if task is None:
            raise HTTPException(429, reason)
        while run_sync and task["status"] in ("SUBMITTED", "RUNNING"):
            await asyncio.sleep(POLL_S)
        if run_sync and task["status"] == "ERROR":
            found = _FAILED.search("\n".join(task["details"]))
            code, detail = (int(found[1]), found[2]) if found else (500, "the round failed; see GET /train/")
            raise HTTPException(code, detail)
        return task

    return start


async def _answer_error(request: Request, error: Exception) -> Response:
    """Answers requests for other endpoints with a sentence, and other errors as usual."""
    assert isinstance(error, StarletteHTTPException)
    if (error.status_code, error.detail) in ((404, "Not Found"), (405, "Method Not Allowed")):
        path = printable(request.url.path)[:60]
        detail = (
            f"this server does not answer {request.method} {path}; see docs/monailabel.md for what it answers"
        )
        return JSONResponse({"detail": detail}, 403)
    return await http_exception_handler(request, error)


async def _answer_invalid(request: Request, error: Exception) -> Response:
    """Answers a parameter of the wrong type in a sentence, as everything else."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    detail = f"`{first['loc'][-1]}` cannot be used ({first['msg']}), got {shown(first['input'])}; correct it"
    return JSONResponse({"detail": detail}, 422)


def _check_query(query: Mapping[str, str]) -> str:
    for name in query:
        if name not in ("image", "output"):
            raise HTTPException(422, f"{shown(name)} is no parameter of an inference; leave it out")
    output = query.get("output", "all")
    if output not in OUTPUTS:
        raise HTTPException(
            422, f"`output` must be one of {', '.join(OUTPUTS)}, got {shown(output)}; correct it"
        )
    return output


@asynccontextmanager
async def _form_of(request: Request, max_bytes: int) -> AsyncIterator[FormData]:
    try:
        form = await _bounded(request, max_bytes + MAX_JSON_BYTES).form(max_files=1, max_fields=1)
    except OSError as error:
        raise _full(error) from error
    except ClientDisconnect as error:
        raise _gone() from error
    try:
        for name in form:
            if name not in ("params", "file"):
                raise HTTPException(
                    422, f"a form must hold `params` and `file` only, got {shown(name)}; leave it out"
                )
        yield form
    finally:
        await form.close()


def _bounded(request: Request, max_bytes: int) -> Request:
    """Returns a request whose body ends with error 413 after `max_bytes`; the body is kept on disk."""
    n_bytes = 0

    async def receive() -> Message:
        nonlocal n_bytes
        message = await request.receive()
        n_bytes += len(message.get("body", b""))
        if n_bytes > max_bytes:
            raise HTTPException(
                413,
                f"`file` must have at most {max_bytes:,} bytes, got more; the operator allows more with "
                "--conf max_voxels N",
            )
        return message

    return Request(request.scope, receive)


@asynccontextmanager
async def _own_folder() -> AsyncIterator[Path]:
    """Yields a folder for this request's upload and result; it is removed afterwards."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="ctpa_vqgan_"))
    except OSError as error:
        raise _full(error) from error
    try:
        yield folder
    finally:
        await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)


def _merged(model: str, image: str, form: FormData) -> dict[str, Any]:
    """Returns the request's values; as in MONAI Label, `params` overrides those in the address."""
    params = form.get("params") or "{}"
    if not isinstance(params, str):
        raise HTTPException(422, "`params` must be text, got a file; write a JSON object")
    given = _parsed(params, "`params`")
    return {"model": model, "image": image, **given}


def _save_upload(form: FormData, folder: Path) -> Path | None:
    file = form.get("file")
    if file is None:
        return None
    if not isinstance(file, UploadFile):
        raise HTTPException(422, "`file` must be a file, got text; send it as curl -F file=@ct.nii.gz does")
    name = (file.filename or "").lower()
    suffix = next((kept for end, kept in UPLOADS.items() if name.endswith(end)), None)
    if suffix is None:
        # only the suffix of the name is used, since the name may be a patient's
        raise HTTPException(
            422,
            f"`file` must end in one of {', '.join(UPLOADS)}, got {shown(Path(name).suffix)}; "
            "convert the scan",
        )
    path = folder / f"upload{suffix}"
    try:
        with path.open("xb") as copy:
            shutil.copyfileobj(file.file, copy, CHUNK_BYTES)
    except OSError as error:
        raise _full(error) from error
    return path


def _gone() -> HTTPException:
    """Ends a request whose client went away; without it the log would get a traceback for each."""
    return HTTPException(400, "the request ended before its body did; send it again")


def _full(error: OSError) -> HTTPException:
    if error.errno in FULL:
        return HTTPException(
            507, "the temporary folder of the server is full; nothing was kept, make room there"
        )
    return HTTPException(
        500, f"the server cannot write its temporary folder ({error.strerror}); tell the operator"
    )


async def _json_of(request: Request) -> dict[str, Any]:
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_JSON_BYTES:
                raise HTTPException(
                    422, f"the settings must be at most {MAX_JSON_BYTES} bytes; leave most of them out"
                )
    except ClientDisconnect as error:
        raise _gone() from error
    return _parsed(body.decode("utf-8", "replace") or "{}", "the settings")


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"{name} must be a JSON object, got {shown(text)}; correct it") from error
    if content is not None and not isinstance(content, dict):
        raise HTTPException(422, f"{name} must be a JSON object, got {shown(content)}; correct it")
    return content or {}


def _answer(result: Mapping[str, Any], output: str) -> Response:
    if output == "json":
        return JSONResponse(result["params"])
    path = Path(result["file"])
    name = path.name
    # kept open until it is sent; the folder is removed before that, so nothing stays if the client
    # disconnects
    file = path.open("rb")
    if output == "image":
        headers = {
            "content-length": str(path.stat().st_size),
            "content-disposition": f'attachment; filename="{name}"',
        }
        return StreamingResponse(_chunks(file, file), 200, headers, "application/octet-stream")
    params = json.dumps(result["params"])
    parts = MultipartEncoder(
        {"params": (None, params, "application/json"), "image": (name, file, "application/octet-stream")}
    )
    headers = {"content-length": str(parts.len)}
    return StreamingResponse(_chunks(parts, file), 200, headers, parts.content_type)


def _chunks(source: Any, file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := source.read(CHUNK_BYTES):
            yield chunk

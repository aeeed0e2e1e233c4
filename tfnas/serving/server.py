"""Serves exported models over TensorFlow Serving's REST and gRPC protocols, where TensorFlow Serving itself is not.

    python -m tfnas.serving.server --model_base_path=runs/digits/export/digits --model_name=digits

Its flags are named as tensorflow_model_server's are, so that the command and the clients move to the image
`tensorflow/serving` unchanged. It is not TensorFlow Serving: it loads the newest version once, when it starts, does not
batch the requests of different clients, and answers predict, metadata and status only. HTTP is kserve's; both need the
extra `serving`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import importlib.util
import logging
import os
import pathlib
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import app, flags

from tfnas.common import terminal
from tfnas.common.errors import UserError, fail
from tfnas.serving import versions

if TYPE_CHECKING:
    from tfnas.serving import servable

_BASE_PATH = flags.DEFINE_string("model_base_path", None, "Folder of the model, with one for each version.")
_NAME = flags.DEFINE_string("model_name", "default", "The model's name in requests.")
_CONFIG_FILE = flags.DEFINE_string(
    "model_config_file", None, "Several models instead: a text file with a ModelServerConfig's model_config_list."
)
_PORT = flags.DEFINE_integer("port", 8500, "Port of gRPC; 0 takes a free one.", 0, 65535)
_REST_PORT = flags.DEFINE_integer("rest_api_port", 8501, "Port of REST; 0 takes a free one.", 0, 65535)
_MAX_BYTES = flags.DEFINE_integer(
    "max_request_bytes",
    32 << 20,
    "Bytes of a request: of its body in REST, of its message in gRPC. More is refused.",
    1,
)
_MAX_IMAGES = flags.DEFINE_integer("max_images", 256, "Images, or other inputs, of a request; more are refused.", 1)
_ADDRESS = flags.DEFINE_string("address", "127.0.0.1", "What is listened at; 0.0.0.0 is all the machine's addresses.")

_PROGRAM = "tfnas.serving.server"
_GRACE = 10  # seconds that requests under way have to end
_HTTP = {"INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "NOT_FOUND": 404, "RESOURCE_EXHAUSTED": 429}


def start_grpc(models: servable.Models, address: str, port: int, max_bytes: int) -> tuple[Any, int]:
    """A grpc.Server that answers PredictionService's Predict and GetModelMetadata, started, and its port.

    Args:
        models: that it serves.
        address: of this machine.
        port: 0 is any that is free.
        max_bytes: of a request's message; a larger one is refused with RESOURCE_EXHAUSTED, unread.

    Raises:
        UserError: if the port cannot be had.
    """
    import grpc
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    from tfnas.serving import servable

    def predict(request: Any) -> Any:
        model = models.wanted(request.model_spec)
        name = request.model_spec.signature_name
        response = predict_pb2.PredictResponse()
        answer = model.predict(name, dict(request.inputs), servable.from_message, request.output_filter)
        for output, array in answer.items():
            message = tf.make_tensor_proto(array)
            if array.dtype == np.float32:  # where TensorFlow Serving puts it, and clients look
                message.ClearField("tensor_content")
                message.float_val[:] = array.ravel().tolist()
            response.outputs[output].CopyFrom(message)
        _identify(response.model_spec, model)
        response.model_spec.signature_name = name or servable.DEFAULT_SIGNATURE
        return response

    def answered(answer: Callable[[Any], Any], request: Any, context: Any) -> Any:
        try:
            return answer(request)
        except servable.RequestError as refused:
            return context.abort(grpc.StatusCode[refused.code], str(refused))

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request: Any, context: Any) -> Any:
            return answered(predict, request, context)

        def GetModelMetadata(self, request: Any, context: Any) -> Any:
            return answered(lambda request: _metadata(models.wanted(request.model_spec)), request, context)

        def Classify(self, request: Any, context: Any) -> Any:
            return context.abort(grpc.StatusCode.UNIMPLEMENTED, "Predict or GetModelMetadata expected")

        Regress = MultiInference = Classify

    options = [
        ("grpc.so_reuseport", 0),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", max_bytes),
        # No compression: the limit would hold for a message as it is sent, whatever it is unpacked to.
        ("grpc.compression_enabled_algorithms_bitset", 1),
    ]
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(thread_name_prefix="grpc"), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    try:
        port = server.add_insecure_port(f"{address}:{port}")
    except RuntimeError:  # it was free before the model was loaded
        raise _in_use("--port", address, port) from None
    server.start()
    return server, port


def listen(flag: str, address: str, port: int) -> socket.socket:
    """A socket for REST; kserve's own would listen at all of the machine's addresses.

    Args:
        flag: that gave the port, for messages.
        address: of this machine.
        port: 0 is any that is free.

    Raises:
        UserError: if the port cannot be had.
    """
    try:
        return socket.create_server((address, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _in_use(flag, address, port) from None
        reason = (error.strerror or "").partition(" (while")[0]  # without what Python adds on the address
        received = f"{port} ({reason})"
        raise UserError(f"{flag}: one that can be had at --address={address} expected. Received: {received}") from None


def _in_use(flag: str, address: str, port: int) -> UserError:
    return UserError(f"{flag}={port}: in use at {address} by another process; give another, or 0 for any free one")


def _check_ports() -> None:
    """Raises UserError if one cannot be had.

    They are given back until all is loaded: a client is to be refused until then, and not to wait.
    """
    address, port, rest_port = _ADDRESS.value, _PORT.value, _REST_PORT.value
    if port == rest_port != 0:
        raise UserError(f"--port and --rest_api_port: two ports expected. Received: {port} for both")
    listen("--rest_api_port", address, rest_port).close()
    listen("--port", address, port).close()


class _Bounded:
    """An ASGI application behind which no request's body is larger than `max_bytes`; a larger one is answered by 413.

    A body of no declared length, sent in pieces, is counted as it comes.
    """

    _DRAINED = 32  # x max_bytes of a refused body are taken and thrown away: many clients read no answer before

    def __init__(self, app: Any, max_bytes: int) -> None:
        self._app = app
        self._max = max_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        declared = int(length) if length.isdigit() else 0
        pieces: list[bytes] = []
        size, more = 0, True
        while more and size <= self._DRAINED * self._max:
            message = await receive()
            if message["type"] != "http.request":  # the client has gone
                return
            piece, more = message.get("body", b""), message.get("more_body", False)
            size += len(piece)
            if max(size, declared) > self._max:
                pieces.clear()
            else:
                pieces.append(piece)
        if max(size, declared) > self._max:
            from starlette.responses import JSONResponse

            received = f"{max(size, declared)}{' or more' * more}"
            error = f"body: at most {self._max} bytes expected (--max_request_bytes). Received: {received}"
            await JSONResponse({"error": error}, 413)(scope, receive, send)
            return
        waiting = [{"type": "http.request", "body": b"".join(pieces), "more_body": False}]
        pieces.clear()

        async def replayed() -> Any:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, replayed, send)


def rest_server(models: servable.Models, max_bytes: int) -> Any:
    """A kserve RESTServer that answers TensorFlow Serving's predict, status and metadata; it listens when it is run.

    Args:
        models: that it serves.
        max_bytes: of a request's body.
    """
    arguments, sys.argv = sys.argv, sys.argv[:1]  # kserve parses the command line when it is imported
    try:
        import kserve.model_server
    finally:
        sys.argv = arguments
    import orjson
    import starlette.exceptions
    import starlette.responses
    from google.protobuf import json_format
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.model_repository_extension import ModelRepositoryExtension
    from kserve.protocol.rest.server import RESTServer
    from kserve.protocol.rest.v1_endpoints import V1Endpoints
    from tensorflow_serving.apis import get_model_status_pb2

    from tfnas.serving import servable

    # It logs every error it answers with a traceback; an error that is not answered is logged by uvicorn.
    logging.getLogger("kserve").setLevel(logging.CRITICAL)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")  # kserve's own use of it

    class Endpoint(kserve.Model):
        def __init__(self, model: servable.Model) -> None:
            super().__init__(model.name)
            self.model = model
            self.ready = True

        async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            return await asyncio.to_thread(self.answer, payload)

        def answer(self, payload: Any) -> Any:
            if isinstance(payload, bytes):  # kserve reads only what is called JSON; curl calls it a form
                try:
                    payload = orjson.loads(payload)
                except orjson.JSONDecodeError as error:
                    raise servable.RequestError(f"body: JSON expected. Received: {error}") from None
            return servable.answer_json(self.model, payload)

    repository = kserve.ModelRepository()
    for model in models.by_name.values():
        repository.update(Endpoint(model))
    plane = DataPlane(model_registry=repository)
    endpoints = V1Endpoints(plane)

    def found(request: Any) -> servable.Model:
        return models.find(request.path_params["name"], request.path_params.get("version"))

    def as_json(message: Any) -> Any:
        content = json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return starlette.responses.JSONResponse(content)

    async def predict(request: Any) -> Any:
        return await endpoints.predict(found(request).name, request)

    async def metadata(request: Any) -> Any:
        return as_json(_metadata(found(request)))

    async def status(request: Any) -> Any:
        state = get_model_status_pb2.ModelVersionStatus(version=found(request).version, state="AVAILABLE")
        state.status.SetInParent()
        return as_json(get_model_status_pb2.GetModelStatusResponse(model_version_status=[state]))

    async def refuse(_: Any, error: Any) -> Any:
        return starlette.responses.JSONResponse({"error": str(error)}, _HTTP.get(error.code, 500))

    async def no_route(request: Any, error: Any) -> Any:
        message = f"{error.detail}: {request.method} {request.url.path}"
        return starlette.responses.JSONResponse({"error": message}, error.status_code)

    http = kserve.model_server.app
    http.add_middleware(_Bounded, max_bytes=max_bytes)
    http.add_exception_handler(servable.RequestError, refuse)
    http.add_exception_handler(starlette.exceptions.HTTPException, no_route)
    # Before kserve's own, which they stand in for.
    for path in ("/v1/models/{name}", "/v1/models/{name}/versions/{version:int}"):
        http.add_route(path, status, methods=["GET"])
        http.add_route(f"{path}/metadata", metadata, methods=["GET"])
        http.add_route(f"{path}:predict", predict, methods=["POST"])
    # Over an empty repository: no client can unload a model.
    nothing = ModelRepositoryExtension(kserve.ModelRepository())
    return RESTServer("kserve.model_server:app", plane, nothing, http_port=0, grace_period=_GRACE)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """The positional arguments; a mistake in a flag ends the process with one line and exit code 2."""
    try:
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        fail(str(error), 2, _PROGRAM)


def main(_: Sequence[str]) -> None:
    """Serves until SIGTERM or SIGINT; a user's mistake ends with one line and exit code 1."""
    try:
        _serve()
    except UserError as error:
        fail(str(error), error.exit_code, _PROGRAM)


def _serve() -> None:
    for package in ("grpc", "kserve", "tensorflow_serving"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"the package '{package}' expected. Received: none; pip install 'tfnas[serving]'")
    base_path, config_file = _BASE_PATH.value, _CONFIG_FILE.value
    if bool(base_path) == bool(config_file):
        raise UserError(
            "one of --model_base_path=FOLDER and --model_config_file=FILE expected. "
            f"Received: {'both' if base_path else 'neither'}"
        )
    folders = _read_config(config_file) if config_file else {_NAME.value: str(base_path)}
    for name, folder in folders.items():
        at = f"--model_config_file: {config_file}: base_path of '{name}'" if config_file else "--model_base_path"
        versions.newest(folder, at)
    _check_ports()
    # A mistake is told by now: TensorFlow and the models take seconds to load.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # a request that is refused is no warning
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # nor is it an error
    terminal.load_tensorflow()
    from tfnas.serving import servable

    models = servable.Models(servable.Model(name, folder, _MAX_IMAGES.value) for name, folder in folders.items())
    listening = listen("--rest_api_port", _ADDRESS.value, _REST_PORT.value)
    rest = rest_server(models, _MAX_BYTES.value)
    rpc, port = start_grpc(models, _ADDRESS.value, _PORT.value, _MAX_BYTES.value)
    names = ", ".join(f"{model.name} version {model.version}" for model in models.by_name.values())
    rest_port = listening.getsockname()[1]
    print(f"ready: {names}; REST http://{_ADDRESS.value}:{rest_port}, gRPC {_ADDRESS.value}:{port}", flush=True)
    try:
        rest.run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        rpc.stop(_GRACE).wait()


def _read_config(file: str) -> dict[str, str]:
    """The folders of a ModelServerConfig's models, by name."""
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    try:
        text = pathlib.Path(file).read_text()
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise UserError(f"--model_config_file: {file}: a ModelServerConfig expected. Received: {error}") from error
    folders = {model.name: model.base_path for model in config.model_config_list.config}
    if not folders:
        raise UserError(f"--model_config_file: {file}: a model_config_list with models expected. Received: none")
    return folders


def _metadata(model: servable.Model) -> Any:
    from tensorflow_serving.apis import get_model_metadata_pb2

    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in model.signature_defs.items():
        signatures.signature_def[name].CopyFrom(signature)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    _identify(response.model_spec, model)
    response.metadata["signature_def"].Pack(signatures)
    return response


def _identify(model_spec: Any, model: servable.Model) -> None:
    model_spec.name = model.name
    model_spec.version.value = model.version


if __name__ == "__main__":
    terminal.define_help()
    app.run(main, flags_parser=parse_flags)
